use super::*;
use crate::store::record::key::{Kind, Secret};
use proptest::{prelude::*, test_runner::RngSeed};

fn secret() -> Secret {
    Secret::new(std::array::from_fn(|i| i as u8))
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
    }
}
