//! What a node's shell may do wrong: mistakes planted on purpose, one a type. [`Sound`] does nothing wrong.

use handfast_trust::Medium;
use handfast_trust::sim::{NoFileSync, SimDisk};

/// How a node's shell does its work.
pub(crate) trait Plant: 'static {
    /// What it takes for a disk.
    type Disk: Medium;
    /// The disk as it takes it.
    fn disk(disk: SimDisk) -> Self::Disk;
    /// It says what is durable only when it is.
    const WAITS: bool = true;
    /// It asks the rules again after the disk has confirmed.
    const DECIDES_AFRESH: bool = true;
    /// It keeps the notices that it is given.
    const KEEPS_NOTICES: bool = true;
    /// It has the book write down what a change of the networks meant.
    const RECONCILES: bool = true;
    /// It cuts those whose trust has fallen.
    const CUTS: bool = true;
    /// At a start it has the book look at what a dead run left.
    const LOOKS_BACK: bool = true;
}

macro_rules! plants {
    ($($(#[$doc:meta])* $name:ident { $($what:ident)? };)*) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name;

            impl Plant for $name {
                type Disk = SimDisk;
                fn disk(disk: SimDisk) -> SimDisk {
                    disk
                }
                $(const $what: bool = false;)?
            }
        )*
    };
}

plants! {
    /// Nothing is wrong.
    Sound {};
    /// Takes for durable what is only in memory.
    AnswersBeforeTheDisk { WAITS };
    /// Says after the wait for the disk what it had decided before.
    KeepsItsFirstDecision { DECIDES_AFRESH };
    /// Does not keep the notices that it is given.
    DropsNotices { KEEPS_NOTICES };
    /// Leaves trust records as they are when memberships change.
    NeverReconciles { RECONCILES };
    /// Leaves sessions open when trust falls.
    CutsNobody { CUTS };
    /// Does not look at what a dead run left.
    ForgetsAtStart { LOOKS_BACK };
}

/// Its disk confirms syncs that it never does.
pub(crate) struct SyncsNothing;

impl Plant for SyncsNothing {
    type Disk = NoFileSync<SimDisk>;
    fn disk(disk: SimDisk) -> NoFileSync<SimDisk> {
        NoFileSync(disk)
    }
}
