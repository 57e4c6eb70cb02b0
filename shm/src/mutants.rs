//! Faults built into the code that ships, for the simulator to find: each breaks one promise, and is switched on alone.
//!
//! Compiled only with the feature `mutants`, which nothing that ships enables: there [`mutant!`](crate::mutant) is the
//! word `false`, and the place costs nothing. Key type: [`Mutant`]. Neighbour: `sim`, whose `--mutants` shows that none
//! survives.

use std::cell::Cell;

/// Lists the mutants once: the type, its name, what it is part of, what goes wrong.
macro_rules! mutants {
    ($($part:literal { $($name:ident = $what:literal,)* })*) => {
        /// One fault.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutant {
            $($(#[doc = $what] $name,)*)*
        }

        impl Mutant {
            pub const ALL: &[Mutant] = &[$($(Mutant::$name,)*)*];

            /// The part of the system that it breaks.
            pub const fn part(self) -> &'static str {
                match self { $($(Mutant::$name => $part,)*)* }
            }

            /// What goes wrong.
            pub const fn what(self) -> &'static str {
                match self { $($(Mutant::$name => $what,)*)* }
            }
        }
    };
}

mutants! {
    "lanes" {
        LaneTakesTwice = "a slot that was taken is not counted as consumed, once in a while",
        LaneIgnoresMark = "a receiver hands out what its sender had withdrawn",
        LaneIsNeverFull = "a sender writes over slots that nobody has taken",
        LaneTellsNobody = "a sender publishes and does not ring",
    }
    "credits" {
        CreditsStayOut = "the last of each few extents that are given back is forgotten",
        CreditsComeTwice = "an extent is given back twice",
        CreditsComeEarly = "an extent behind a proxy comes home before its slot was consumed",
        CreditsAreNotSeen = "a sender does not look again at what was consumed once its lane was full",
    }
    "session resume" {
        ResumeSkips = "a new session goes on where the old one had got, whatever of it had arrived",
        ResumeForgetsRaises = "a new session says nothing of bits that were raised in the old one",
        ResumeForgetsReplies = "a new session does not say again the replies of the old one",
        ResumeForgetsTheEnd = "a new session does not say again which endpoints ended in the old one",
        ResumeStartsOver = "a proxy's successor hands out what its predecessor had",
    }
    "generations" {
        GenerationIsReused = "a slot's next holder has the generation of its last",
        GenerationIsNotCompared = "a pair is found by its peer's slot alone",
        GenerationIsNotChecked = "whoever holds the slot now counts as the endpoint that held it",
    }
    "death" {
        DeathHidesTheRest = "what a dead peer of this node had published is not delivered",
        DeathIsNotTold = "the far ends of an endpoint that ended are not told",
        DeathCountsAsUnsent = "what had left for a node that was declared dead counts as known not delivered",
        DeathForgetsTheTaken = "a request that a dead server had taken counts as known not delivered",
    }
    "notify" {
        NotifyIsNotSeen = "bits that were received are received again",
        NotifyIsNotCounted = "every fourth raise changes its bits and not the count that says that some have changed",
        NotifyIsMirroredOnce = "a proxy mirrors the first raise of a bit and no later one",
    }
    "relay" {
        RelayAnswersTheOld = "a new server answers under the number that the call had with the old one",
        RelayTellsNobody = "a request is passed on and its client is not told to whom",
        RelayIsNotConfirmed = "a request that was passed on is handed out though its client has not confirmed it",
        RelayDropsTheClient = "a confirmation that comes before its request is forgotten",
    }
    "copy" {
        CopyIgnoresTheEnd = "a grant that was revoked still counts",
        CopyIgnoresTheGrantee = "a grant is of use to anybody",
        CopyIgnoresTheOffset = "what is read and written begins where the segment does",
        CopyStopsEarly = "a courier says that all is there when the first step is",
    }
    "routing" {
        RoutingKeepsTheOld = "a binding goes on with a proxy's memory when another has taken its place",
        RoutingMissesNews = "a daemon does not believe what it hears of the first slot of every node",
        RoutingForgetsPairs = "a proxy's successor is given half of the pairs that its predecessor carried",
        RoutingRingsAnother = "a courier rings the doorbell beside the one that it means",
    }
}

thread_local! {
    static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    static TURNS: Cell<u32> = const { Cell::new(0) };
}

/// Switches one on for this thread, and all others off.
pub fn switch(to: Option<Mutant>) {
    ON.set(to);
    TURNS.set(0);
}

/// Whether this one is on. Asked by [`mutant!`](crate::mutant).
pub fn is_on(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

/// Whether this one is on, and its turn: each `every`th time that it is asked.
pub fn is_turn(mutant: Mutant, every: u32) -> bool {
    is_on(mutant) && {
        TURNS.set(TURNS.get().wrapping_add(1));
        TURNS.get().is_multiple_of(every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_on_alone_and_every_part_has_two() {
        switch(Some(Mutant::LaneIgnoresMark));
        assert!(is_on(Mutant::LaneIgnoresMark) && !is_on(Mutant::LaneTakesTwice));
        assert!(!is_turn(Mutant::LaneIgnoresMark, 2) && is_turn(Mutant::LaneIgnoresMark, 2));
        switch(None);
        assert!(!Mutant::ALL.iter().any(|mutant| is_on(*mutant)));
        let alone = |part| Mutant::ALL.iter().filter(|mutant| mutant.part() == part).count() < 2;
        assert!(!Mutant::ALL.iter().any(|mutant| alone(mutant.part())));
    }
}
