//! What the benchmarks share: records that look like those of a node, a store on a directory with its drainer's
//! thread, a medium whose syncs can be slowed, and figures with their spread.
//!
//! Timings are shown, never asserted: no benchmark passes or fails by one.
#![warn(missing_docs)]

mod clock;
pub mod pair;
pub mod place;
pub mod records;
pub mod spread;
pub mod stand;
pub mod threads;

pub use clock::{Stopwatch, pause, used_us};
pub use place::{Place, Slow, SlowDir};
pub use spread::{Latencies, Spread, Table, rate};
pub use stand::Stand;
