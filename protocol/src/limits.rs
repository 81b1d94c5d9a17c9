//! Every limit of the protocol, in one place, with the relations between them asserted at compile time.
//! Units and qualifiers come last in the names.

/// The protocol version that every stream head carries.
pub const PROTOCOL_VERSION: u8 = 1;
/// The ALPN protocol name (RFC 7301) of a handfast connection.
pub const ALPN: &[u8] = b"handfast/1";

/// Longest note, alias or reason, in bytes of UTF-8.
pub const NOTE_BYTES_MAX: usize = 256;
/// Longest service name, in bytes.
pub const SERVICE_BYTES_MAX: usize = 32;
/// Most service names in one scope.
pub const SCOPE_SERVICES_MAX: usize = 8;
/// Most addresses in one address record.
pub const ADDRESSES_MAX: usize = 8;
/// Most extensions in one frame.
pub const EXTENSIONS_MAX: usize = 8;
/// Longest value of one extension, in bytes.
pub const EXTENSION_BYTES_MAX: usize = 2 * 1024;

/// Longest canonical encoding of one signed statement: two keys, terms with a full scope and note, a signature, with
/// the 8-byte lengths of the codec: 64 + 4 + 8 + 8 + 9 + (9 + 8 * 40) + 33 + (8 + 256) + 64 = 783.
pub const STATEMENT_BYTES_MAX: usize = 783;
/// Longest signed address record: a key, 8 addresses of 18 bytes, two numbers, a length and a signature.
pub const ADDRESS_RECORD_BYTES_MAX: usize = 32 + 8 + ADDRESSES_MAX * 18 + 8 + 8 + 64;
/// Longest name of a network, in bytes.
pub const NETWORK_NAME_BYTES_MAX: usize = 32;
/// Longest membership: two certificates of two keys, three numbers, a role and a signature, and whether the second is
/// there: 2 * (64 + 24 + 4 + 64) + 1.
pub const MEMBERSHIP_BYTES_MAX: usize = 313;
/// Length of one signed notice of an expulsion: two keys, two numbers, a kind and a signature.
pub const NOTICE_BYTES: usize = 64 + 16 + 4 + 64;
/// Most networks that one Offer or Answer shows.
pub const STANDINGS_MAX: usize = 4;
/// Longest payload of a ticket, in bytes. As text: 8 characters for 5 bytes, a prefix and a checksum, which is below
/// the 1,023 characters that the code of bech32m is good for.
pub const TICKET_BYTES_MAX: usize = 600;
/// Most keys that one invite lets in.
pub const INVITE_USES_MAX: u32 = 65_536;
/// Most members in one page of a roster.
pub const ROSTER_PAGE_MAX: usize = 64;
/// Most notices in one page of an expulsion list.
pub const NOTICE_PAGE_MAX: usize = 256;
/// Most requests on one join stream.
pub const JOIN_REQUESTS_MAX: u32 = 1_024;
/// Longest frame body on a join stream.
pub const JOIN_FRAME_BYTES_MAX: usize = 48 * 1024;
/// Longest stream head on the wire: version, kind, name, extensions.
pub const HEAD_BYTES_MAX: usize = 1024;
/// Longest frame body of an exchange.
pub const FRAME_BYTES_MAX: usize = 8 * 1024;
/// Bytes of the length that precedes every frame body (u32, little endian).
pub const FRAME_LENGTH_BYTES: usize = 4;

/// Epochs of new statements follow the clock only up to here, so that a clock gone wild cannot use the range up.
pub const EPOCH_CLOCK_MAX: u64 = 1 << 48;

/// How long an end waits for one frame, in milliseconds.
pub const FRAME_DEADLINE_MS: u64 = 5_000;
/// How long an end waits for its own disk before it answers `Busy`, in milliseconds.
pub const DURABLE_DEADLINE_MS: u64 = 2_000;
/// How long a whole exchange may take, in milliseconds.
pub const EXCHANGE_DEADLINE_MS: u64 = 10_000;
/// How long a whole conversation on a join stream may take, in milliseconds.
pub const JOIN_DEADLINE_MS: u64 = 120_000;
/// What `Busy` asks the other side to wait, in milliseconds.
pub const BUSY_RETRY_AFTER_MS: u64 = 2_000;
/// Longest wait that `Busy` may ask for and is given, in milliseconds: it does not put off a revocation.
pub const BUSY_RETRY_AFTER_MS_MAX: u64 = 60_000;

/// Bidirectional streams that one connection may have open.
pub const STREAMS_MAX: u32 = 8;
/// How many of them services may use, so that a revocation always finds one.
pub const SERVICE_STREAMS_MAX: u32 = 6;

const _: () = {
    assert!(SERVICE_STREAMS_MAX < STREAMS_MAX);
    assert!(DURABLE_DEADLINE_MS < FRAME_DEADLINE_MS, "Busy must arrive before the other end gives up");
    assert!(FRAME_DEADLINE_MS < EXCHANGE_DEADLINE_MS);
    assert!(BUSY_RETRY_AFTER_MS <= BUSY_RETRY_AFTER_MS_MAX);
    // An Offer carries two statements and an address record; there is room for two full extensions beside them.
    assert!(2 * STATEMENT_BYTES_MAX + ADDRESS_RECORD_BYTES_MAX + 2 * EXTENSION_BYTES_MAX + 256 < FRAME_BYTES_MAX);
    // Each standing is a membership and what is held of the expulsions: a count and a digest.
    assert!(8 + STANDINGS_MAX * (MEMBERSHIP_BYTES_MAX + 4 + 32) <= EXTENSION_BYTES_MAX);
    assert!(ROSTER_PAGE_MAX * (MEMBERSHIP_BYTES_MAX + 1 + ADDRESS_RECORD_BYTES_MAX) + 256 < JOIN_FRAME_BYTES_MAX);
    assert!(NOTICE_PAGE_MAX * NOTICE_BYTES + 256 < JOIN_FRAME_BYTES_MAX);
    assert!(FRAME_BYTES_MAX <= JOIN_FRAME_BYTES_MAX);
    assert!("hfinv1".len() + TICKET_BYTES_MAX.div_ceil(5) * 8 + 6 <= 1_023);
    assert!(HEAD_BYTES_MAX <= FRAME_BYTES_MAX);
    assert!(SERVICE_BYTES_MAX <= NOTE_BYTES_MAX);
};
