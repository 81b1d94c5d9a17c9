//! Names to addresses, off the async workers and behind a gate.
//!
//! Invariant (BOUND): at most [`NAMES_AT_ONCE`] names are being resolved, also when the resolver hangs: the permit lives
//! in the closure, which outlives whoever has stopped waiting for it.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

/// Names that are being resolved at the same time.
const NAMES_AT_ONCE: usize = 8;
/// How long a name may take, with the wait for its turn.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);

/// The gate.
pub(crate) struct Resolver {
    places: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver { places: Arc::new(Semaphore::new(NAMES_AT_ONCE)) }
    }
}

impl Resolver {
    /// The addresses of `HOST:PORT`. `None`: it does not resolve, or not in time.
    pub(crate) async fn resolve(&self, host_and_port: &str) -> Option<Vec<SocketAddr>> {
        if let Ok(at) = host_and_port.parse() {
            return Some(vec![at]);
        }
        let name = host_and_port.to_owned();
        let lookup = async {
            let place = self.places.clone().acquire_owned().await.ok()?;
            let looked_up = tokio::task::spawn_blocking(move || {
                let _place = place;
                name.to_socket_addrs().map(Iterator::collect)
            });
            looked_up.await.ok()?.ok()
        };
        tokio::time::timeout(RESOLVE_DEADLINE, lookup).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_resolve_and_nonsense_does_not() {
        let resolver = Resolver::default();
        assert_eq!(resolver.resolve("192.0.2.1:1").await, Some(vec![SocketAddr::from(([192, 0, 2, 1], 1))]));
        assert!(resolver.resolve("localhost:1").await.is_some_and(|found| !found.is_empty()));
        assert_eq!(resolver.resolve("no-port").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_waits_for_its_turn_until_the_deadline_and_an_address_needs_none() {
        let resolver = Resolver::default();
        let all = resolver.places.clone().acquire_many_owned(NAMES_AT_ONCE as u32).await.unwrap();
        assert_eq!(resolver.resolve("localhost:1").await, None);
        assert!(resolver.resolve("[::1]:1").await.is_some());
        drop(all);
        assert_eq!(resolver.places.available_permits(), NAMES_AT_ONCE);
    }
}
