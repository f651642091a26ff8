use super::*;

fn secret() -> Secret {
    Secret::new(std::array::from_fn(|i| i as u8))
}

#[test]
fn kind_and_scope_are_part_of_the_key() {
    let secret = secret();
    let (a, b) = (secret.scope("a"), secret.scope("b"));
    let key = secret.key(Kind::Throttle, &a, b"x");
    assert_ne!(key, secret.key(Kind::Lock, &a, b"x"));
    assert_ne!(key, secret.key(Kind::Throttle, &b, b"x"));
    assert_eq!(key, secret.key(Kind::Throttle, &a, b"x"));
}

#[test]
fn keys_of_a_scope_have_one_mark_and_those_of_another_have_another() {
    let secret = secret();
    let key = |scope: &str, name: &[u8]| secret.key(Kind::Throttle, &secret.scope(scope), name).hash;
    assert_eq!(scope_mark(&key("a", b"x")), scope_mark(&key("a", b"y")));
    let marks: std::collections::HashSet<_> =
        (0..1000).map(|i| scope_mark(&key(&i.to_string(), b"x")).to_vec()).collect();
    assert_eq!(marks.len(), 1000);
}
