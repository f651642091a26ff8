use super::*;
use crate::store::record::key::{Kind, Secret};
use proptest::{prelude::*, test_runner::RngSeed};

fn secret() -> Secret {
    Secret::new(std::array::from_fn(|i| i as u8))
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(13), failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let key = secret().key(Kind::Value, &[0; 16], b"x");
        prop_assert_eq!(decode_entry(&Bytes::from(bytes), &key, b"x"), Stored::Damaged);
    }

    #[test]
    fn mutated_heads_with_true_checksums_never_panic(mut body in prop::collection::vec(any::<u8>(), HEAD..400)) {
        body[0] = ENTRY_VERSION;
        let check = xxh3_64(&body[HEAD..]);
        body[REST_CHECK..PLACE].copy_from_slice(&check.to_le_bytes());
        let check = xxh3_64(&body[..HEAD_CHECK]);
        body[HEAD_CHECK..HEAD].copy_from_slice(&check.to_le_bytes());
        let key = secret().key(Kind::Value, &[0; 16], b"x");
        decode_entry(&Bytes::from(body), &key, b"x");
    }

    #[test]
    fn entries_round_trip(
        name in prop::collection::vec(any::<u8>(), 0..400),
        payload in prop::collection::vec(any::<u8>(), 0..400),
        tags in prop::collection::vec(any::<u64>(), 0..TAGS_MAX),
        [stored, fresh, revalidate, if_error, cost, spread, sequence, family, place] in any::<[u64; 9]>(),
        scope in any::<ScopeId>(),
        is_mark: bool,
    ) {
        let key = secret().key(Kind::Value, &[0; 16], &name);
        let life = Life { stored, fresh, revalidate, if_error };
        let entry = Entry { life, cost, spread, sequence, scope, tags, family, payload: payload.into(), is_mark };
        let bytes = Bytes::from(encode_entry(&key, &name, &entry));
        let mut placed = bytes.to_vec();
        seal(&mut placed, &life, sequence, place);
        prop_assert_eq!(Claims::of(&placed), Claims { expires: life.ends(), place, family, is_mark });
        prop_assert_eq!(decode_entry(&placed.into(), &key, &name), Stored::Entry(entry.clone()));
        prop_assert_eq!(decode_entry(&bytes, &key, &name), Stored::Entry(entry));
        let other = [&name[..], b"!"].concat();
        prop_assert_eq!(decode_entry(&bytes, &key, &other), Stored::Other);
    }
}
