//! `GET /v1/heartbeat?ticks=N`: how late a ticker on the control thread is, tick by tick. What drifts there keeps the
//! operator waiting, and whatever the node does in time.
//!
//! It ticks only while somebody asks, so that an idle node sleeps. Invariant (BOUND): at most [`TICKS_MAX`] a request.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::api::HeartbeatReply;

/// Between two ticks.
pub const TICK: Duration = Duration::from_millis(10);
/// Ticks of one request: ten seconds.
pub const TICKS_MAX: u32 = 1_000;

/// Ticks on the calling thread's runtime, at moments that were fixed beforehand.
pub async fn beat(ticks: u32) -> HeartbeatReply {
    let began = Instant::now();
    let mut late_us = Vec::new();
    for number in 1..=ticks.min(TICKS_MAX) {
        let due = began + TICK * number;
        sleep_until(due).await;
        late_us.push(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    HeartbeatReply { late_us }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tick_that_is_held_up_is_late_and_the_next_is_not() {
        let held_up = async {
            sleep_until(Instant::now() + TICK * 2 - Duration::from_millis(1)).await;
            tokio::time::advance(Duration::from_millis(5)).await;
        };
        let (beats, ()) = tokio::join!(beat(4), held_up);
        assert_eq!(beats.late_us.len(), 4);
        // The timer's grain is a millisecond.
        assert!((3_000..=5_000).contains(&beats.late_us[1]), "{beats:?}");
        assert!(beats.late_us.iter().enumerate().all(|(at, late)| at == 1 || *late <= 1_000), "{beats:?}");
        assert_eq!(beat(u32::MAX).await.late_us.len() as u32, TICKS_MAX);
    }
}
