//! In-process suites of handfast, under `tests/`: the record core on a simulated disk, and many nodes on loopback.
//! Suites that start the real program live in `node/tests`.
