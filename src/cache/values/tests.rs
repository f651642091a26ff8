use crate::{
    cache::testing::{Hand, builder, cache},
    error::Error,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Person {
    name: String,
    age: Option<u8>,
    tags: BTreeMap<String, i64>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Kind {
    Plain,
    Numbered(u64),
    Named { first: String, last: Option<String> },
}

#[tokio::test]
async fn values_of_many_types_come_back() {
    let cache = cache();
    let kinds = [Kind::Plain, Kind::Numbered(u64::MAX), Kind::Named { first: "a".into(), last: None }];
    for (kind, age) in kinds.into_iter().zip([None, Some(0), Some(255)]) {
        let tags = BTreeMap::from([("x".to_owned(), i64::MIN), (String::new(), 1)]);
        let person = Person { name: "Ada".into(), age, tags, kind };
        assert!(cache.insert("p", &person).await.unwrap());
        assert_eq!(cache.get::<Person>("p").unwrap(), Some(person));
    }
    let bytes: Vec<u8> = (0..=255).collect();
    cache.insert("bytes", &bytes).await.unwrap();
    assert_eq!(cache.get::<Vec<u8>>("bytes").unwrap(), Some(bytes));
    cache.insert("f", &f64::NEG_INFINITY).await.unwrap();
    assert_eq!(cache.get::<f64>("f").unwrap(), Some(f64::NEG_INFINITY));
    cache.insert("none", &None::<u8>).await.unwrap();
    assert_eq!(cache.get::<Option<u8>>("none").unwrap(), Some(None));
    cache.insert("", "the empty name").await.unwrap();
    assert_eq!(cache.get::<String>("").unwrap().as_deref(), Some("the empty name"));
}

#[tokio::test]
async fn a_field_can_be_added_later() {
    #[derive(Serialize)]
    struct Old {
        a: u8,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    struct New {
        a: u8,
        b: Option<u8>,
    }
    let cache = cache();
    cache.insert("x", &Old { a: 1 }).await.unwrap();
    assert_eq!(cache.get::<New>("x").unwrap(), Some(New { a: 1, b: None }));
}

#[tokio::test]
async fn the_wrong_type_is_a_codec_error_and_harms_nothing() {
    let cache = cache();
    cache.insert("x", "text").await.unwrap();
    assert!(matches!(cache.get::<u64>("x"), Err(Error::Codec(_))));
    assert!(matches!(cache.incr("x", 1).await, Err(Error::Codec(_))));
    assert_eq!(cache.get::<String>("x").unwrap().as_deref(), Some("text"));
    cache.insert("x", &300).await.unwrap();
    assert!(matches!(cache.get::<u8>("x"), Err(Error::Codec(_))));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_old_value_stays() {
    let cache = cache();
    cache.insert("x", "old").await.unwrap();
    let limit = cache.root().largest();
    let fits = "a".repeat(limit - 5);
    cache.insert("y", &fits).await.unwrap();
    assert_eq!(cache.get::<String>("y").unwrap(), Some(fits));
    let error = cache.insert("x", &"a".repeat(limit)).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { size, limit: at } if size > at && at == limit), "{error}");
    assert_eq!(cache.get::<String>("x").unwrap().as_deref(), Some("old"));
    let many = (0..65).fold(cache.insert("x", "new"), |insert, i| insert.tag(&i.to_string()));
    assert!(matches!(many.await, Err(Error::Codec(_))));
    let most = (0..64).fold(cache.insert("x", "new"), |insert, i| insert.tag(&i.to_string()));
    assert!(most.await.unwrap());
}

#[tokio::test]
async fn add_and_remove_say_what_was_there() {
    let cache = cache();
    assert!(cache.add("x", &1).await.unwrap());
    assert!(!cache.add("x", &2).await.unwrap());
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(1));
    assert!(cache.remove("x").await.unwrap());
    assert!(!cache.remove("x").await.unwrap());
    assert!(cache.add("x", &2).await.unwrap());
}

#[tokio::test]
async fn lives_end_and_touch_prolongs_them() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let second = Duration::from_secs(1);
    cache.insert("x", &1).expire(second).await.unwrap();
    hand.advance(second - Duration::from_nanos(1));
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(1));
    assert!(cache.touch("x", Some(second * 5)).await.unwrap());
    hand.advance(second * 5 - Duration::from_nanos(1));
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(1));
    assert_eq!(cache.incr("x", 1).await.unwrap(), 2);
    hand.advance(Duration::from_nanos(1));
    assert_eq!(cache.get::<i32>("x").unwrap(), None, "incr keeps the life");
    assert!(!cache.touch("x", None).await.unwrap());
    assert!(!cache.remove("x").await.unwrap());
    assert_eq!(cache.incr("x", 5).await.unwrap(), 5);
    assert!(cache.touch("x", None).await.unwrap());
    hand.advance(second * 1_000_000);
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(5));
    cache.insert("x", &1).expire(Duration::ZERO).await.unwrap();
    assert_eq!(cache.get::<i32>("x").unwrap(), None, "a life of nothing takes the old value away too");
    cache.insert("x", &1).expire(Duration::MAX).await.unwrap();
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(1));
}

#[tokio::test]
async fn sums_saturate() {
    let cache = cache();
    assert_eq!(cache.incr("x", i64::MAX).await.unwrap(), i64::MAX);
    assert_eq!(cache.incr("x", 1).await.unwrap(), i64::MAX);
    assert_eq!(cache.incr("y", -3).await.unwrap(), -3);
    assert_eq!(cache.incr("y", i64::MIN).await.unwrap(), i64::MIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn add_is_once_and_incr_exact_over_many_tasks() {
    let cache = cache();
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let mut added = 0;
                for i in 0..50 {
                    added += u32::from(cache.add(&format!("once {i}"), &task).await.unwrap());
                    cache.incr("n", 1).await.unwrap();
                }
                added
            })
        })
        .collect();
    let mut added = 0;
    for task in tasks {
        added += task.await.unwrap();
    }
    assert_eq!(added, 50);
    assert_eq!(cache.get::<i64>("n").unwrap(), Some(800));
}

#[test]
fn plain_threads_can_wait() {
    let cache = cache();
    assert!(cache.insert("x", &1).wait().unwrap());
    assert_eq!(cache.incr("x", 1).wait().unwrap(), 2);
    let scopes = [cache.scope("a"), cache.scope("b")];
    scopes[0].insert("x", &1).wait().unwrap();
    assert_eq!(scopes[1].get::<i32>("x").unwrap(), None, "scopes are apart");
}
