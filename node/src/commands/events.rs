//! `events`: what happens, line by line, for as long as somebody reads.

use handfast_protocol::text::escaped;

use super::backend::Backend;
use super::{Context, Verdict};
use crate::cli::EventsArgs;
use crate::control::api::{ApiError, ErrorCode, EventRow};
use crate::control::client::CallError;
use crate::output::Reader;

pub(super) async fn events(context: &Context<'_>, arguments: &EventsArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "events")?;
    let client = backend.node("only a node has events").await?;
    let mut events = client.events(arguments.since, arguments.follow).await.map_err(ended)?;
    while let Some(event) = events.next().await.map_err(ended)? {
        if context.output.row(&event, event_text)? == Reader::Gone {
            return Ok(Verdict::Done);
        }
    }
    if arguments.follow {
        context.output.aside("The node has stopped.");
    }
    Ok(Verdict::Done)
}

fn ended(error: CallError) -> ApiError {
    match error {
        CallError::Failed(error) => error,
        CallError::Lost => {
            let error = ApiError::new(ErrorCode::TryAgain, "The node went away.");
            error.hint("start it again: handfast run; the numbers of events then begin anew")
        }
    }
}

fn event_text(event: &EventRow) -> String {
    let peer = event.peer_id.as_deref().map(|peer| format!(" {peer}")).unwrap_or_default();
    let cause = if event.cause.is_empty() { String::new() } else { format!(": {}", event.cause) };
    escaped(&format!("{} {} {}{peer}{cause}", event.seq, event.at, event.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let mut event = EventRow {
            seq: 7,
            at: "T".into(),
            kind: "trusted".into(),
            peer_id: Some("hf1x".into()),
            cause: "a\nb".into(),
        };
        assert_eq!(event_text(&event), "7 T trusted hf1x: a\\u{a}b");
        event.peer_id = None;
        event.cause.clear();
        assert_eq!(event_text(&event), "7 T trusted");
    }
}
