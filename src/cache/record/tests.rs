use super::*;
use proptest::{prelude::*, test_runner::RngSeed};

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

#[test]
fn a_row_of_another_name_is_absent_and_a_flipped_bit_is_damage() {
    let (key, other) = (secret().key(Kind::Lock, &[0; 16], b"x"), secret().key(Kind::Lock, &[0; 16], b"y"));
    let large = Row { expires: 1, tag: 2, payload: &[7; 1000] };
    with_row(&key, &large, |bytes| assert_eq!(decode_row(Some(bytes), &key), Found::Row(large)));
    let row = Row { expires: 1, tag: 2, payload: b"abc" };
    let out = with_row(&key, &row, <[u8]>::to_vec);
    assert_eq!(decode_row(Some(&out), &key), Found::Row(row));
    assert_eq!(decode_row(Some(&out), &other), Found::Absent);
    for bit in 0..out.len() * 8 {
        let mut flipped = out.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_row(Some(&flipped), &key), Found::Damaged, "bit {bit}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(13), failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let key = secret().key(Kind::Value, &[0; 16], b"x");
        prop_assert_eq!(decode_row(Some(&bytes), &key), Found::Damaged);
        prop_assert_eq!(decode_entry(&Bytes::from(bytes), &key, b"x"), Stored::Damaged);
    }

    #[test]
    fn mutated_heads_with_a_true_checksum_never_panic(mut body in prop::collection::vec(any::<u8>(), 96..400)) {
        body[0] = ENTRY_VERSION;
        let check = xxh3_64(&body);
        body.extend_from_slice(&check.to_le_bytes());
        let key = secret().key(Kind::Value, &[0; 16], b"x");
        decode_entry(&Bytes::from(body), &key, b"x");
    }

    #[test]
    fn entries_round_trip(
        name in prop::collection::vec(any::<u8>(), 0..400),
        payload in prop::collection::vec(any::<u8>(), 0..400),
        tags in prop::collection::vec(any::<u64>(), 0..TAGS_MAX),
        [stored, fresh, revalidate, if_error, cost, spread, sequence] in any::<[u64; 7]>(),
        scope in any::<ScopeId>(),
        is_mark: bool,
    ) {
        let key = secret().key(Kind::Value, &[0; 16], &name);
        let life = Life { stored, fresh, revalidate, if_error };
        let entry = Entry { life, cost, spread, sequence, scope, tags, payload: payload.into(), is_mark };
        let bytes = Bytes::from(encode_entry(&key, &name, &entry));
        prop_assert_eq!(claimed_expiry(&bytes), life.ends());
        prop_assert_eq!(decode_entry(&bytes, &key, &name), Stored::Entry(entry));
        let other = [&name[..], b"!"].concat();
        prop_assert_eq!(decode_entry(&bytes, &key, &other), Stored::Other);
    }
}
