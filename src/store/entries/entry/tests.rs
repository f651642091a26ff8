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
        body[REST_CHECK..PAYLOAD_LEN].copy_from_slice(&check.to_le_bytes());
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
        let Encoded { row, pieces } = encode_entry(&key, &name, &entry);
        prop_assert!(pieces.is_empty());
        let bytes = Bytes::from(row);
        let mut placed = bytes.to_vec();
        seal(&mut placed, &life, sequence, place);
        prop_assert_eq!(Claims::of(&placed), Claims { expires: life.ends(), place, family, is_mark, payload_len: entry.payload.len() as u64 });
        prop_assert_eq!(decode_entry(&placed.into(), &key, &name), Stored::Entry(entry.clone()));
        prop_assert_eq!(decode_entry(&bytes, &key, &name), Stored::Entry(entry));
        let other = [&name[..], b"!"].concat();
        prop_assert_eq!(decode_entry(&bytes, &key, &other), Stored::Other);
    }
}

#[test]
fn what_does_not_fit_is_kept_in_pieces() {
    let key = secret().key(Kind::Value, &[0; 16], b"x");
    let life = Life::without_grace(1, 2);
    let [whole, large] = [WHOLE_MAX - HEAD - 1, WHOLE_MAX - HEAD].map(|len| {
        let (tags, payload) = (Vec::new(), vec![7; len].into());
        let entry =
            Entry { life, cost: 0, spread: 0, sequence: 0, scope: [1; 16], tags, family: 0, payload, is_mark: false };
        (encode_entry(&key, b"x", &entry), entry)
    });
    assert_eq!((whole.0.row.len(), whole.0.pieces.len()), (WHOLE_MAX, 0));
    assert_eq!(decode_entry(&whole.0.row.into(), &key, b"x"), Stored::Entry(whole.1));
    let (Encoded { row, pieces }, entry) = large;
    assert_eq!(pieces.len(), 1);
    assert_eq!(Claims::footprint(&row), footprint(row.len()) + footprint(pieces[0].len()));
    let len = entry.payload.len();
    let found = decode_entry(&row.into(), &key, b"x");
    assert_eq!(found, Stored::InPieces(Entry { payload: Bytes::new(), ..entry }, len));
}
