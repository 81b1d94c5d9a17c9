//! `config show`: the values in force, and where each comes from.

use serde::Serialize;

use super::{Context, Verdict};
use crate::config::{Shown, environment, unknown_variables};
use crate::control::api::ApiError;
use crate::data_dir::{Access, DataDir, DataDirError};
use crate::output::table;

/// `config show`
#[derive(Debug, Serialize)]
pub(super) struct ConfigReply {
    pub(super) settings: Vec<Shown>,
}

pub(super) fn show(context: &Context<'_>) -> Result<Verdict, ApiError> {
    // Without a data directory there is still a configuration.
    let directory = match DataDir::open(&context.path()?, Access::Look) {
        Ok(directory) => Some(directory),
        Err(DataDirError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let reply = ConfigReply { settings: context.configuration(directory.as_ref(), &[])?.shown() };
    for variable in unknown_variables(&environment()) {
        context.output.aside(&format!("Note: there is no setting for the variable {variable}."));
    }
    context.output.reply(&reply, config_text)?;
    Ok(Verdict::Done)
}

fn config_text(reply: &ConfigReply) -> String {
    let rows =
        reply.settings.iter().map(|shown| vec![shown.key.to_owned(), shown.value.to_string(), shown.origin.clone()]);
    table(&["SETTING", "VALUE", "FROM"], &["SETTING"], rows)
}
