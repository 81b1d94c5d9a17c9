//! Tests of the record core, on the simulated disk and, where the kernel matters, on a real one.

mod damage;
mod faults;
mod format;
mod gathering;
mod running;
mod tables;
mod tools;
