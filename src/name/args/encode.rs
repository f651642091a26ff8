//! The encoding of arguments. Each value begins with a tag and says itself where it ends, so no two values look alike:
//!
//! | value | encoding |
//! | --- | --- |
//! | unit, `None`, `Some(x)` | `u`, `n`, `o` x |
//! | `true`, `false` | `t`, `f` |
//! | integer, or float of integral value | `i` decimal `;` (typed: `i` decimal type `;`) |
//! | other float | `d` shortest decimal `;` (typed: with the type before the `;`) |
//! | text, character, bytes | `s`, `c`, `b` netstring |
//! | sequence, tuple | `[` values `]`, `(` values `)` |
//! | map | `{` key value, sorted by encoded key `}` |
//! | struct | `<` netstring of the field, value `>` |
//! | variant: unit, newtype, tuple, struct | `v`, `w`, `x`, `y` netstring of the variant, then what is in it |

use std::fmt::Display;

use serde::ser::{self, Serialize, Serializer};

use super::unnamed::{MAX_DEPTH, MAX_LEN, Unnamed};
use crate::name::buf::NameBuf;

type Encoded = Result<(), Unnamed>;

/// Encodes one value.
pub(super) struct Encoder<'a> {
    name: &'a mut NameBuf,
    typed: bool,
    depth: usize,
    /// The parts to leave out, if this value is an outermost one.
    ignored: &'a [Box<str>],
}

impl<'a> Encoder<'a> {
    pub(super) fn new(name: &'a mut NameBuf, typed: bool, ignored: &'a [Box<str>]) -> Self {
        Self { name, typed, depth: 0, ignored }
    }

    /// The encoder of a value one level down.
    fn below(&mut self) -> Result<Encoder<'_>, Unnamed> {
        if self.depth >= MAX_DEPTH {
            return Err(Unnamed::TooDeep);
        }
        self.fits(0)?;
        Ok(Encoder { name: self.name, typed: self.typed, depth: self.depth + 1, ignored: &[] })
    }

    /// Encodes what a newtype holds, which stands for the newtype itself.
    fn inside<T: Serialize + ?Sized>(mut self, value: &T) -> Encoded {
        let ignored = self.ignored;
        value.serialize(Encoder { ignored, ..self.below()? })
    }

    fn fits(&self, more: usize) -> Encoded {
        if self.name.len().saturating_add(more) > MAX_LEN { Err(Unnamed::TooLong) } else { Ok(()) }
    }

    fn tag(&mut self, tag: u8) {
        self.name.push_byte(tag);
    }

    fn part(&mut self, tag: u8, part: &[u8]) -> Encoded {
        self.fits(part.len())?;
        self.tag(tag);
        self.name.push_part(part);
        Ok(())
    }

    fn number(&mut self, tag: u8, number: impl Display, kind: &str) -> Encoded {
        self.tag(tag);
        let kind = if self.typed { kind } else { "" };
        self.name.push_fmt(format_args!("{number}{kind};"));
        Ok(())
    }

    fn float(&mut self, value: f64, kind: &str) -> Encoded {
        // `MAX as f64` is 2^128, `MIN as f64` is -2^127: between them the casts are exact.
        if self.typed || value.fract() != 0.0 {
            self.number(b'd', value, kind)
        } else if (0.0..u128::MAX as f64).contains(&value) {
            self.number(b'i', value as u128, kind)
        } else if (i128::MIN as f64..0.0).contains(&value) {
            self.number(b'i', value as i128, kind)
        } else {
            self.number(b'd', value, kind)
        }
    }

    fn values(mut self, open: u8, close: u8) -> Values<'a> {
        self.tag(open);
        Values { encoder: self, position: 0, close }
    }
}

macro_rules! integers {
    ($($method:ident $type:ident),+) => {$(
        fn $method(mut self, value: $type) -> Encoded {
            self.number(b'i', value, stringify!($type))
        }
    )+};
}

impl<'a> Serializer for Encoder<'a> {
    type Ok = ();
    type Error = Unnamed;
    type SerializeSeq = Values<'a>;
    type SerializeTuple = Values<'a>;
    type SerializeTupleStruct = Values<'a>;
    type SerializeTupleVariant = Values<'a>;
    type SerializeMap = Entries<'a>;
    type SerializeStruct = Values<'a>;
    type SerializeStructVariant = Values<'a>;

    integers! {
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64, serialize_u128 u128,
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128
    }

    fn serialize_bool(mut self, value: bool) -> Encoded {
        self.tag(if value { b't' } else { b'f' });
        Ok(())
    }

    fn serialize_f32(mut self, value: f32) -> Encoded {
        self.float(f64::from(value), "f32")
    }

    fn serialize_f64(mut self, value: f64) -> Encoded {
        self.float(value, "f64")
    }

    fn serialize_char(mut self, value: char) -> Encoded {
        self.part(b'c', value.encode_utf8(&mut [0; 4]).as_bytes())
    }

    fn serialize_str(mut self, value: &str) -> Encoded {
        self.part(b's', value.as_bytes())
    }

    fn collect_str<T: Display + ?Sized>(mut self, value: &T) -> Encoded {
        self.tag(b's');
        self.name.part_with(|name| std::fmt::write(name, format_args!("{value}"))).map_err(ser::Error::custom)?;
        self.fits(0)
    }

    fn serialize_bytes(mut self, value: &[u8]) -> Encoded {
        self.part(b'b', value)
    }

    fn serialize_none(mut self) -> Encoded {
        self.tag(b'n');
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(mut self, value: &T) -> Encoded {
        self.tag(b'o');
        self.inside(value)
    }

    fn serialize_unit(mut self) -> Encoded {
        self.tag(b'u');
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Encoded {
        self.serialize_unit()
    }

    fn serialize_unit_variant(mut self, _: &'static str, _: u32, variant: &'static str) -> Encoded {
        self.part(b'v', variant.as_bytes())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Encoded {
        self.inside(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        mut self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Encoded {
        self.part(b'w', variant.as_bytes())?;
        self.inside(value)
    }

    fn serialize_seq(mut self, _: Option<usize>) -> Result<Values<'a>, Unnamed> {
        self.ignored = &[];
        Ok(self.values(b'[', b']'))
    }

    fn serialize_tuple(self, _: usize) -> Result<Values<'a>, Unnamed> {
        Ok(self.values(b'(', b')'))
    }

    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Values<'a>, Unnamed> {
        self.serialize_tuple(len)
    }

    fn serialize_tuple_variant(
        mut self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Values<'a>, Unnamed> {
        self.part(b'x', variant.as_bytes())?;
        self.serialize_tuple(len)
    }

    fn serialize_map(mut self, len: Option<usize>) -> Result<Entries<'a>, Unnamed> {
        self.tag(b'{');
        let start = self.name.len();
        // What a `Serialize` says about its length is a hint: not one to reserve gigabytes for.
        let entries = Vec::with_capacity(len.unwrap_or(0).min(1024));
        Ok(Entries { encoder: self, start, open: None, entries })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Values<'a>, Unnamed> {
        Ok(self.values(b'<', b'>'))
    }

    fn serialize_struct_variant(
        mut self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Values<'a>, Unnamed> {
        self.part(b'y', variant.as_bytes())?;
        self.serialize_struct(name, len)
    }
}

/// Encodes the values of a sequence, a tuple or a struct.
pub(super) struct Values<'a> {
    encoder: Encoder<'a>,
    position: usize,
    close: u8,
}

impl Values<'_> {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Encoded {
        let position = self.position;
        self.position += 1;
        if self.encoder.ignored.iter().any(|ignored| ignored.parse() == Ok(position)) {
            return Ok(());
        }
        value.serialize(self.encoder.below()?)
    }

    fn field<T: Serialize + ?Sized>(&mut self, field: &'static str, value: &T) -> Encoded {
        if self.encoder.ignored.iter().any(|ignored| **ignored == *field) {
            return Ok(());
        }
        self.encoder.name.push_part(field.as_bytes());
        value.serialize(self.encoder.below()?)
    }

    fn close(mut self) -> Encoded {
        self.encoder.tag(self.close);
        self.encoder.fits(0)
    }
}

macro_rules! elements {
    ($($trait:ident $method:ident),+) => {$(
        impl ser::$trait for Values<'_> {
            type Ok = ();
            type Error = Unnamed;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Encoded {
                self.element(value)
            }

            fn end(self) -> Encoded {
                self.close()
            }
        }
    )+};
}

elements! {
    SerializeSeq serialize_element, SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field, SerializeTupleVariant serialize_field
}

macro_rules! fields {
    ($($trait:ident),+) => {$(
        impl ser::$trait for Values<'_> {
            type Ok = ();
            type Error = Unnamed;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, field: &'static str, value: &T) -> Encoded {
                self.field(field, value)
            }

            fn end(self) -> Encoded {
                self.close()
            }
        }
    )+};
}

fields! { SerializeStruct, SerializeStructVariant }

/// Encodes the entries of a map as they come, and sorts them in the end.
pub(super) struct Entries<'a> {
    encoder: Encoder<'a>,
    /// Where the first entry begins.
    start: usize,
    /// Where the entry begins whose value is awaited.
    open: Option<usize>,
    entries: Vec<Entry>,
}

/// Where an encoded entry lies.
#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    value: usize,
    end: usize,
}

impl Entry {
    fn key<'a>(&self, encoded: &'a [u8]) -> &'a [u8] {
        &encoded[self.start..self.value]
    }
}

impl ser::SerializeMap for Entries<'_> {
    type Ok = ();
    type Error = Unnamed;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Encoded {
        if self.open.is_some() {
            return Err(Unnamed::Malformed);
        }
        self.open = Some(self.encoder.name.len());
        key.serialize(self.encoder.below()?)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Encoded {
        let start = self.open.take().ok_or(Unnamed::Malformed)?;
        let name = &mut *self.encoder.name;
        let middle = name.len();
        if let Some(key) = key_text(&name.as_bytes()[start..])
            && self.encoder.ignored.iter().any(|ignored| ignored.as_bytes() == key)
        {
            name.truncate(start);
            return Ok(());
        }
        value.serialize(self.encoder.below()?)?;
        self.entries.push(Entry { start, value: middle, end: self.encoder.name.len() });
        Ok(())
    }

    fn end(mut self) -> Encoded {
        if self.open.is_some() {
            return Err(Unnamed::Malformed);
        }
        self.sort();
        self.encoder.tag(b'}');
        self.encoder.fits(0)
    }
}

impl Entries<'_> {
    fn sort(&mut self) {
        let encoded = self.encoder.name.as_mut_bytes();
        if self.entries.is_sorted_by_key(|entry| entry.key(encoded)) {
            return;
        }
        self.entries.sort_by_key(|entry| entry.key(encoded));
        let sorted: Vec<u8> = self.entries.iter().flat_map(|entry| &encoded[entry.start..entry.end]).copied().collect();
        encoded[self.start..].copy_from_slice(&sorted);
    }
}

/// What to call an encoded key that is text, a variant or an integer.
fn key_text(encoded: &[u8]) -> Option<&[u8]> {
    match encoded.split_first()? {
        (b's' | b'c' | b'v', netstring) => {
            let colon = netstring.iter().position(|&byte| byte == b':')?;
            netstring.get(colon + 1..)?.strip_suffix(b",")
        }
        (b'i', number) => number.split(|byte| !byte.is_ascii_digit() && *byte != b'-').next(),
        _ => None,
    }
}
