//! Ids: nodes, distributed containers, slots, generations, endpoints. Names that cannot be swapped.

use core::fmt;

use crate::limits;

/// A node of the DVS: 1 to [`limits::NODES_MAX`]. 0 is no node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NodeId(pub u16);

/// One life of a node's daemon, strictly increasing: seconds since 2020 at its start, or one more than the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Incarnation(pub u32);

/// A distributed container: 1 to [`limits::DCS_MAX`]. 0 is no DC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DcId(pub u16);

/// A place in a DC's table: 0 to [`limits::SLOTS_PER_DC`] - 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Slot(pub u16);

/// The incarnation count of a slot: changes at every bind, strictly increasing, never 0 for a bound slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Generation(pub u32);

/// A name that dies with its holder: DC, slot and generation, 16 + 16 + 32 bits in one word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Endpoint {
    pub dc: DcId,
    pub slot: Slot,
    pub generation: Generation,
}

impl Endpoint {
    pub const fn new(dc: DcId, slot: Slot, generation: Generation) -> Self {
        Endpoint { dc, slot, generation }
    }

    /// The endpoint as one word: DC in the top 16 bits, then slot, then generation. 0 is no endpoint.
    pub const fn to_word(self) -> u64 {
        (self.dc.0 as u64) << 48 | (self.slot.0 as u64) << 32 | self.generation.0 as u64
    }

    /// `None` when the word names no possible endpoint: DC or generation 0, or a slot beyond the table.
    pub const fn from_word(word: u64) -> Option<Self> {
        let (dc, slot, generation) = ((word >> 48) as u16, (word >> 32) as u16, word as u32);
        if dc == 0 || dc > limits::DCS_MAX || slot >= limits::SLOTS_PER_DC || generation == 0 {
            return None;
        }
        Some(Endpoint { dc: DcId(dc), slot: Slot(slot), generation: Generation(generation) })
    }
}

/// One direction of a conversation: from `source` to `destination`, both of one DC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pair {
    pub source: Endpoint,
    pub destination: Endpoint,
}

impl Pair {
    /// The same two endpoints, the other way.
    pub const fn reversed(self) -> Self {
        Pair { source: self.destination, destination: self.source }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for DcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}.{}", self.dc.0, self.slot.0, self.generation.0)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAnEndpoint;

impl fmt::Display for NotAnEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an endpoint: write it as DC:SLOT.GENERATION, for example 1:100.7")
    }
}

impl std::error::Error for NotAnEndpoint {}

impl std::str::FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let (dc, rest) = text.split_once(':').ok_or(NotAnEndpoint)?;
        let (slot, generation) = rest.split_once('.').ok_or(NotAnEndpoint)?;
        let dc: u16 = dc.parse().map_err(|_| NotAnEndpoint)?;
        let slot: u16 = slot.parse().map_err(|_| NotAnEndpoint)?;
        let generation: u32 = generation.parse().map_err(|_| NotAnEndpoint)?;
        let whole = Endpoint::new(DcId(dc), Slot(slot), Generation(generation));
        Endpoint::from_word(whole.to_word()).ok_or(NotAnEndpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_survives_its_word_and_its_text() {
        let e = Endpoint::new(DcId(3), Slot(limits::SLOTS_PER_DC - 1), Generation(u32::MAX));
        assert_eq!(Endpoint::from_word(e.to_word()), Some(e));
        assert_eq!(e.to_string().parse(), Ok(e));
    }

    #[test]
    fn words_that_name_nobody_are_refused() {
        let good = Endpoint::new(DcId(1), Slot(0), Generation(1)).to_word();
        assert!(Endpoint::from_word(good).is_some());
        assert_eq!(Endpoint::from_word(0), None);
        assert_eq!(Endpoint::from_word(good & !0xffff_ffff), None);
        assert_eq!(Endpoint::from_word(good | (limits::SLOTS_PER_DC as u64) << 32), None);
        assert_eq!("1:2".parse::<Endpoint>(), Err(NotAnEndpoint));
    }
}
