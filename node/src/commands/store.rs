//! `store check`: verifies every record file as opening it would. Needs no node, and does one no harm: it only reads.
//! `store compact`: has every file written anew with the last state of each record, and verifies what it has written.
//! Needs the directory for itself; its disk steps are those of any checkpoint.

use data_encoding::HEXLOWER;
use handfast_trust::{
    FLOOR_FILE, FileKind, FileReport, Floor, Medium, NetRecord, PeerRecord, RealDir, Revision, SessionRecord,
    StoreError, TrustRecord, check as check_file,
};

use super::lock::{Patience, acquire};
use super::{Context, Verdict};
use crate::control::api::{ApiError, ErrorCode, FileRow, FilesReply};
use crate::data_dir::{Access, DataDir};
use crate::identity_file::{self, IdentityError};
use crate::output::table;
use crate::stores::compact_all;

pub(super) fn check(context: &Context<'_>) -> Result<Verdict, ApiError> {
    let directory = context.directory(Access::Own)?;
    let reply = FilesReply { files: check_all(&directory)? };
    let is_ok = reply.files.iter().all(|row| row.ok);
    context.output.reply(&reply, files_text)?;
    Ok(if is_ok { Verdict::Done } else { Verdict::But(ErrorCode::Damaged) })
}

pub(super) async fn compact(context: &Context<'_>) -> Result<Verdict, ApiError> {
    let directory = context.directory(Access::Own)?;
    let lock = acquire(&directory, "store compact", Patience::Node).await?;
    compact_all(&directory)?;
    let reply = FilesReply { files: check_all(&directory)? };
    drop(lock);
    context.output.reply(&reply, files_text)?;
    Ok(Verdict::Done)
}

/// The floor first, then what must reach it: a node that writes meanwhile only gets further.
pub(super) fn check_all(directory: &DataDir) -> Result<Vec<FileRow>, ApiError> {
    let owner = match identity_file::load(directory.path()) {
        Ok(key) => Some(*key.peer_id().as_bytes()),
        Err(IdentityError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let mut medium = RealDir::open(directory.path())?;
    if owner.is_none() && !medium.exists(FileKind::Trust.file_name())? {
        let message = format!("There is no identity and no store in {}.", directory.path().display());
        return Err(ApiError::new(ErrorCode::NotFound, message).hint("`handfast init` makes them"));
    }
    let mut floor = Floor::default();
    let mut rows = Vec::new();
    // Without an identity nobody can say whose floor it should be.
    if let Some(owner) = &owner {
        let read = Floor::read(&mut medium, owner);
        rows.push(floor_row(&read));
        floor = read.unwrap_or_default();
    }
    let owner = owner.as_ref();
    rows.push(file_row(check_file::<TrustRecord, _>(&mut medium, owner, &floor)));
    // A node that was never in a network, of an older program, has none.
    if medium.exists(FileKind::Invites.file_name())? || floor.of(FileKind::Invites) > Revision::ZERO {
        rows.push(file_row(check_file::<NetRecord, _>(&mut medium, owner, &floor)));
    }
    // Those begin anew when they are missing.
    if medium.exists(FileKind::Peers.file_name())? {
        rows.push(file_row(check_file::<PeerRecord, _>(&mut medium, owner, &floor)));
    }
    if medium.exists(FileKind::Sessions.file_name())? {
        rows.push(file_row(check_file::<SessionRecord, _>(&mut medium, owner, &floor)));
    }
    Ok(rows)
}

pub(super) fn kind_name(kind: FileKind) -> &'static str {
    kind.file_name().trim_end_matches(".hf")
}

fn floor_row(read: &Result<Floor, StoreError>) -> FileRow {
    FileRow {
        file: FLOOR_FILE.to_owned(),
        kind: "floor".to_owned(),
        revision: read.as_ref().map_or(0, |floor| floor.trust.0),
        records: 0,
        bytes: 0,
        live_bytes: 0,
        torn_bytes: 0,
        chain: None,
        ok: read.is_ok(),
        error: read.as_ref().err().map(ToString::to_string),
    }
}

fn file_row(report: FileReport) -> FileRow {
    FileRow {
        file: report.file.file_name().to_owned(),
        kind: kind_name(report.file).to_owned(),
        revision: report.revision.0,
        records: report.records,
        bytes: report.bytes,
        live_bytes: report.live_bytes,
        torn_bytes: report.torn_bytes,
        chain: (report.revision > Revision::ZERO || report.is_ok()).then(|| HEXLOWER.encode(&report.chain)),
        ok: report.is_ok(),
        error: report.error.map(|error| error.to_string()),
    }
}

fn files_text(reply: &FilesReply) -> String {
    let rows = reply.files.iter().map(|row| {
        let state = if row.ok { "ok" } else { "damaged" };
        let numbers =
            [row.revision, row.records, row.bytes, row.live_bytes, row.torn_bytes].map(|number| number.to_string());
        let mut cells = vec![row.file.clone(), state.to_owned()];
        cells.extend(numbers);
        cells.push(row.chain.as_ref().map_or_else(|| "-".to_owned(), |chain| chain.chars().take(16).collect()));
        cells
    });
    let columns = ["FILE", "STATE", "REVISION", "RECORDS", "BYTES", "LIVE BYTES", "TORN BYTES", "CHAIN"];
    let mut text = table(&columns, &["FILE"], rows);
    for error in reply.files.iter().filter_map(|row| row.error.as_ref()) {
        text.push_str(&format!("\n{}", handfast_protocol::text::escaped(error)));
    }
    if reply.files.iter().any(|row| row.torn_bytes > 0 && row.ok) {
        text.push_str(
            "\nTorn bytes are the rest of a write that was never acknowledged; the next start cuts them off.",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use handfast_trust::{DirectoryLock, LockOwner};

    use super::*;
    use crate::initialise::initialise;

    #[test]
    fn a_check_finds_damage_and_changes_nothing() {
        let outer = tempfile::tempdir().unwrap();
        let directory = DataDir::create(&outer.path().join("data")).unwrap();
        assert_eq!(check_all(&directory).unwrap_err().code, ErrorCode::NotFound);
        let owner = LockOwner { pid: 1, role: "test".into(), socket: None };
        let lock = DirectoryLock::try_acquire(directory.path(), &owner).unwrap();
        initialise(&directory, None, &lock).unwrap();
        let rows = check_all(&directory).unwrap();
        let files: Vec<(&str, bool)> = rows.iter().map(|row| (row.file.as_str(), row.ok)).collect();
        assert_eq!(files, [("floor", true), ("trust.hf", true)]);

        compact_all(&directory).unwrap();
        let compacted = check_all(&directory).unwrap();
        assert!(compacted.iter().all(|row| row.ok), "{compacted:?}");
        assert_ne!(compacted[1].chain, rows[1].chain, "a new file has a new chain");

        let trust = directory.path().join("trust.hf");
        std::fs::OpenOptions::new().write(true).open(&trust).unwrap().set_len(10).unwrap();
        std::fs::remove_file(directory.path().join("floor")).unwrap();
        let rows = check_all(&directory).unwrap();
        assert!(rows[..2].iter().all(|row| !row.ok && row.error.is_some()), "{rows:?}");
        assert_eq!(std::fs::metadata(&trust).unwrap().len(), 10);
        let text = files_text(&FilesReply { files: rows });
        assert!(text.contains("handfast store recover"), "{text}");
    }
}
