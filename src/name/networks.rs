use std::{
    error, fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

/// A list of addresses and networks: proxies to trust, clients to let pass or to turn away.
///
/// Written with commas or blanks in between: `10.0.0.0/8, 192.0.2.1, fd00::/8`. Text without any is the empty list,
/// which contains nobody. Arrays and vectors of such text are taken too, wherever a list of networks is asked for.
///
/// IPv4 addresses written as IPv6 (`::ffff:192.0.2.1`) count as IPv4 and are in no other IPv6 network, so `::/0` stands
/// for all of IPv6 alone. Looking an address up takes logarithmic time; clones share the list.
///
/// ```
/// use tower_floodgate::name::Networks;
///
/// let own: Networks = "10.0.0.0/8, fd00::/8".parse()?;
/// assert!(own.contains("10.1.2.3".parse()?));
/// assert!(own.contains("::ffff:10.1.2.3".parse()?));
/// assert!(!own.contains("203.0.113.9".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// First and last address of each. Networks either hold one another or have nothing in common; those within others
    /// are left out, so that these are disjoint, and sorted.
    ranges: Arc<[(IpAddr, IpAddr)]>,
}

impl Networks {
    /// Whether the address is one of these, or within one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let begun = self.ranges.partition_point(|(first, _)| *first <= address);
        begun.checked_sub(1).and_then(|at| self.ranges.get(at)).is_some_and(|(_, last)| address <= *last)
    }

    /// Whether nobody is in this list.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn from_texts<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Self, NetworksError> {
        let mut ranges = Vec::new();
        for text in texts {
            for text in text.as_ref().split([',', ' ', '\t', '\r', '\n']).filter(|text| !text.is_empty()) {
                ranges.push(range(text)?);
            }
        }
        ranges.sort_by(|one, other| one.0.cmp(&other.0).then(other.1.cmp(&one.1)));
        ranges.dedup_by(|inner, outer| inner.1 <= outer.1);
        Ok(Self { ranges: ranges.into() })
    }

    /// For builders: text that is no list panics, with the text in the message.
    #[track_caller]
    pub(super) fn or_panic<N>(networks: N) -> Self
    where
        N: TryInto<Self>,
        N::Error: fmt::Display,
    {
        // Not within a closure, which would hide the caller.
        match networks.try_into() {
            Ok(networks) => networks,
            Err(error) => panic!("{error}"),
        }
    }
}

impl FromStr for Networks {
    type Err = NetworksError;

    fn from_str(text: &str) -> Result<Self, NetworksError> {
        Self::from_texts([text])
    }
}

impl TryFrom<&str> for Networks {
    type Error = NetworksError;

    fn try_from(text: &str) -> Result<Self, NetworksError> {
        text.parse()
    }
}

macro_rules! from_texts {
    ($($type:ty $(, $N:ident)?;)+) => {$(
        impl<S: AsRef<str> $(, const $N: usize)?> TryFrom<$type> for Networks {
            type Error = NetworksError;

            fn try_from(texts: $type) -> Result<Self, NetworksError> {
                Self::from_texts(texts)
            }
        }
    )+};
}

from_texts! { [S; N], N; &[S; N], N; &[S]; Vec<S>; }

/// As it is parsed: sorted, without what lies within another.
impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (first, last)) in self.ranges.iter().enumerate() {
            f.write_str(if nth == 0 { "" } else { ", " })?;
            match (first, last) {
                (first, last) if first == last => write!(f, "{first}")?,
                (IpAddr::V4(a), IpAddr::V4(b)) => write!(f, "{a}/{}", (a.to_bits() ^ b.to_bits()).leading_zeros())?,
                (IpAddr::V6(a), IpAddr::V6(b)) => write!(f, "{a}/{}", (a.to_bits() ^ b.to_bits()).leading_zeros())?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Networks({self})")
    }
}

/// The first and last address of a network, or of an address alone. The crate ipnet would do the masks alone: it takes
/// `010.0.0.0/8`, which is octal elsewhere, keeps IPv4 apart from IPv4 written as IPv6, and has no list to look up in.
fn range(text: &str) -> Result<(IpAddr, IpAddr), NetworksError> {
    let not_a_network = || NetworksError::NotANetwork(text.into());
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        // `parse` would take `+8` too.
        Some((address, bits)) if bits.bytes().all(|digit| digit.is_ascii_digit()) => {
            (address, Some(bits.parse::<u32>().map_err(|_| not_a_network())?))
        }
        Some(_) => return Err(not_a_network()),
    };
    let mut address: IpAddr = address.parse().map_err(|_| not_a_network())?;
    let mut bits = bits.unwrap_or(if address.is_ipv4() { 32 } else { 128 });
    if let (IpAddr::V6(_), IpAddr::V4(mapped), 96..) = (address, address.to_canonical(), bits) {
        (address, bits) = (mapped.into(), bits - 96);
    }
    let (first, last): (IpAddr, IpAddr) = match address {
        IpAddr::V4(address) if bits <= 32 => {
            let host = u32::MAX.checked_shr(bits).unwrap_or(0);
            let address = address.to_bits();
            (Ipv4Addr::from_bits(address & !host).into(), Ipv4Addr::from_bits(address | host).into())
        }
        IpAddr::V6(address) if bits <= 128 => {
            let host = u128::MAX.checked_shr(bits).unwrap_or(0);
            let address = address.to_bits();
            (Ipv6Addr::from_bits(address & !host).into(), Ipv6Addr::from_bits(address | host).into())
        }
        _ => return Err(not_a_network()),
    };
    if first != address {
        return Err(NetworksError::HostBits { text: text.into(), network: format!("{first}/{bits}").into() });
    }
    Ok((first, last))
}

/// Why text is no list of [`Networks`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworksError {
    /// This is neither an address nor a network. Names of hosts are not, nor are addresses with a port or a zone.
    NotANetwork(Box<str>),
    /// The address has bits set past the prefix, so it is unclear whether one address or a network was meant.
    HostBits {
        /// What was written, such as `10.0.0.7/8`.
        text: Box<str>,
        /// The network that holds it, such as `10.0.0.0/8`.
        network: Box<str>,
    },
}

impl fmt::Display for NetworksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotANetwork(text) => write!(
                f,
                "not an address or network: {text:?}; write an address (192.0.2.1, 2001:db8::1) or a network \
                 (10.0.0.0/8, fd00::/8)"
            ),
            Self::HostBits { text, network } => write!(
                f,
                "{text:?} has bits set past its prefix; write {network} for the network, or leave the prefix out for \
                 the one address"
            ),
        }
    }
}

impl error::Error for NetworksError {}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngSeed};

    use super::*;

    fn networks(text: &str) -> Networks {
        text.parse().unwrap()
    }

    #[test]
    fn who_is_in() {
        let list = networks("10.0.0.0/8, 192.0.2.1\tfd00::/8,\n::ffff:198.51.100.0/120 2001:db8::7");
        let within = [
            "10.0.0.0",
            "10.255.255.255",
            "192.0.2.1",
            "198.51.100.255",
            "::ffff:10.1.2.3",
            "fd00::",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8::7",
        ];
        for address in within {
            assert!(list.contains(address.parse().unwrap()), "{address}");
        }
        let without =
            ["9.255.255.255", "11.0.0.0", "192.0.2.0", "192.0.2.2", "198.51.101.0", "fc00::", "fe00::", "2001:db8::8"];
        for address in without {
            assert!(!list.contains(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn all_of_a_family_and_nobody() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        for (text, has_v4, has_v6) in
            [("0.0.0.0/0", true, false), ("::/0", false, true), ("::/0 0.0.0.0/0", true, true), (" ,\n", false, false)]
        {
            let list = networks(text);
            assert_eq!((list.contains(v4), list.contains(v6), list.is_empty()), (has_v4, has_v6, !has_v4 && !has_v6));
        }
        assert_eq!(networks(""), Networks::default());
    }

    #[test]
    fn networks_show_themselves_as_they_are_parsed() {
        let list = networks("fd00::/8,10.1.0.0/16,192.0.2.1/32,10.0.0.0/8,10.0.0.0/9,::1,::ffff:0:0/96,10.0.0.0/8");
        assert_eq!(list.to_string(), "0.0.0.0/0, ::1, fd00::/8");
        let list = networks("192.0.2.1/32,10.0.0.0/8,10.0.0.0/9,10.9.9.9,::/0");
        assert_eq!(format!("{list:?}"), "Networks(10.0.0.0/8, 192.0.2.1, ::/0)");
        assert_eq!(networks(&list.to_string()), list);
    }

    #[test]
    fn many_kinds_of_text_are_taken() {
        let list = networks("10.0.0.0/8, ::1");
        assert_eq!(Networks::or_panic("10.0.0.0/8, ::1"), list);
        assert_eq!(Networks::or_panic(["10.0.0.0/8", "::1"]), list);
        assert_eq!(Networks::or_panic(&["10.0.0.0/8", "::1"]), list);
        assert_eq!(Networks::or_panic(vec!["10.0.0.0/8".to_owned(), "::1".to_owned()]), list);
        assert_eq!(Networks::or_panic(&["10.0.0.0/8", "::1"][..]), list);
        assert_eq!(Networks::or_panic(list.clone()), list);
    }

    #[test]
    fn bad_text_is_told_what_to_write() {
        let bad = [
            "10.0.0.256",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10/8",
            "010.0.0.1",
            "fd00::/129",
            "fe80::1%eth0",
            "fe80::1%1/64",
            "[::1]",
            "10.0.0.1:80",
            "localhost",
            "/8",
            "::/99999999999",
            "10.0.0.0;10.0.0.1",
            "::ffff:10.0.0.0/129",
        ];
        for text in bad {
            let error = text.parse::<Networks>().unwrap_err();
            assert_eq!(error, NetworksError::NotANetwork(text.into()));
            assert!(error.to_string().contains(&format!("{text:?}; write")), "{error}");
        }
        for (text, network) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("fd00::1/8", "fd00::/8"),
            ("0.0.0.1/0", "0.0.0.0/0"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
            // Neither IPv4 nor what anybody means.
            ("::ffff:0:0/95", "::fffe:0:0/95"),
        ] {
            let error = format!("192.0.2.1 {text}").parse::<Networks>().unwrap_err();
            assert_eq!(error, NetworksError::HostBits { text: text.into(), network: network.into() });
            assert!(error.to_string().contains(&format!("write {network} ")), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(4632),
            failure_persistence: None,
            ..ProptestConfig::with_cases(1_000)
        })]

        /// Against a comparison of the leading bits, one network after the other.
        #[test]
        fn contains_what_shares_the_prefix_of_one(
            v4 in prop::collection::vec((0u32..64, 26u32..=32), 0..6),
            v6 in prop::collection::vec((0u128..64, 122u32..=128), 0..6),
            address in 0u32..64,
        ) {
            let host = |len: u32, width: u32| 1_u128.unbounded_shl(width - len) - 1;
            let v4: Vec<_> = v4.into_iter().map(|(bits, len)| (bits & !(host(len, 32) as u32), len)).collect();
            let v6: Vec<_> = v6.into_iter().map(|(bits, len)| (bits & !host(len, 128), len)).collect();
            let texts = v4.iter().map(|(bits, len)| format!("{}/{len}", Ipv4Addr::from_bits(*bits)));
            let texts = texts.chain(v6.iter().map(|(bits, len)| format!("{}/{len}", Ipv6Addr::from_bits(*bits))));
            let list = Networks::or_panic(texts.collect::<Vec<_>>());
            let in_v4 = v4.iter().any(|(bits, len)| (bits ^ address).leading_zeros() >= *len);
            let in_v6 = v6.iter().any(|(bits, len)| (bits ^ u128::from(address)).leading_zeros() >= *len);
            prop_assert_eq!(list.contains(Ipv4Addr::from_bits(address).into()), in_v4);
            prop_assert_eq!(list.contains(Ipv6Addr::from_bits(address.into()).into()), in_v6);
            prop_assert_eq!(networks(&list.to_string()), list);
        }

        #[test]
        fn any_text_is_answered(text in "[0-9a-f:./% ,]{0,40}|\\PC{0,40}") {
            if let Ok(list) = text.parse::<Networks>() {
                prop_assert_eq!(networks(&list.to_string()), list);
            }
        }
    }
}
