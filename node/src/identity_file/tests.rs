//! Keys through files: ours, openssl's, and everything that is not a key of ours.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::*;

fn private_file(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn fault(path: &Path) -> KeyFault {
    match read_key_file(path).unwrap_err() {
        IdentityError::Unusable { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

/// Runs openssl; `None` if there is none here, which is said once per test.
fn openssl(arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("openssl").args(arguments).output() else {
        #[allow(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: there is no openssl here");
        }
        return None;
    };
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn what_was_made_is_read_and_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(load(directory.path()), Err(IdentityError::NotFound { .. })));
    let key = generate().unwrap();
    create(directory.path(), &key).unwrap();
    assert_eq!(load(directory.path()).unwrap().peer_id(), key.peer_id());
    assert_eq!(names(directory.path()), [IDENTITY_FILE]);
    let metadata = std::fs::metadata(directory.path().join(IDENTITY_FILE)).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o600, 1));

    let again = create(directory.path(), &generate().unwrap());
    assert!(matches!(again, Err(IdentityError::AlreadyExists { .. })));
    assert_eq!(load(directory.path()).unwrap().peer_id(), key.peer_id());
    assert_eq!(names(directory.path()), [IDENTITY_FILE]);
}

#[test]
fn two_keys_are_two_keys() {
    assert_ne!(generate().unwrap().peer_id(), generate().unwrap().peer_id());
}

#[test]
fn leftovers_are_removed_and_do_not_block() {
    let directory = tempfile::tempdir().unwrap();
    private_file(&directory.path().join(".identity-0123456789abcdef.tmp"), b"half");
    private_file(&directory.path().join("unrelated"), b"mine");
    create(directory.path(), &generate().unwrap()).unwrap();
    assert_eq!(remove_leftovers(directory.path()).unwrap(), 1);
    assert_eq!(remove_leftovers(directory.path()).unwrap(), 0);
    assert_eq!(names(directory.path()).len(), 2);
}

#[test]
fn a_failed_create_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    assert!(matches!(create(&absent, &generate().unwrap()), Err(IdentityError::Io { action: KeyAction::Create, .. })));
    std::fs::create_dir(directory.path().join(IDENTITY_FILE)).unwrap();
    assert!(matches!(create(directory.path(), &generate().unwrap()), Err(IdentityError::AlreadyExists { .. })));
    assert_eq!(names(directory.path()), [IDENTITY_FILE]);
    assert!(matches!(load(directory.path()), Err(IdentityError::NotAFile { .. })));
}

#[test]
fn a_key_that_others_could_have_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path(), &generate().unwrap()).unwrap();
    let path = directory.path().join(IDENTITY_FILE);
    for mode in [0o601, 0o604, 0o620, 0o640, 0o644, 0o777] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let refused = load(directory.path()).unwrap_err();
        assert!(matches!(refused, IdentityError::Exposed { mode: found, .. } if found == mode), "{refused}");
        assert_eq!(refused.code(), ErrorCode::Failure);
    }
    std::fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
    load(directory.path()).unwrap();

    let link = directory.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(matches!(read_key_file(&link), Err(IdentityError::Symlink { .. })));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        assert!(matches!(load(directory.path()), Err(IdentityError::ForeignOwner { owner: 65_534, .. })));
    }
}

#[test]
fn both_versions_are_read_and_a_foreign_public_half_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let key = generate().unwrap();
    let other = generate().unwrap();
    let document = |public: Option<&SecretKey>| {
        let public_key = public.map(|key| pkcs8::PublicKeyBytes(*key.peer_id().as_bytes()));
        KeypairBytes { secret_key: key.signing_key().to_bytes(), public_key }.to_pkcs8_pem(LineEnding::CRLF).unwrap()
    };
    for (name, public) in [("version-1", None), ("version-2", Some(&key))] {
        let path = directory.path().join(name);
        private_file(&path, document(public).as_bytes());
        assert_eq!(read_key_file(&path).unwrap().peer_id(), key.peer_id(), "{name}");
    }
    let path = directory.path().join("mixed");
    private_file(&path, document(Some(&other)).as_bytes());
    assert_eq!(fault(&path), KeyFault::Malformed);
}

#[test]
fn what_is_no_key_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: &[u8], expected| {
        let path = directory.path().join(name);
        private_file(&path, bytes);
        assert_eq!(fault(&path), expected, "{name}");
    };
    check("empty", b"", KeyFault::NotPem);
    check("text", b"hello", KeyFault::NotPem);
    check("binary", &[0xff; 100], KeyFault::NotPem);
    check("long", &[b'a'; KEY_FILE_BYTES_MAX as usize + 1], KeyFault::TooLong);
    check("ssh", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", KeyFault::OpenSsh);
    check("encrypted", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n", KeyFault::Encrypted);
    check("public", b"-----BEGIN PUBLIC KEY-----\n", KeyFault::Public);
    check("cut", b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQ\n", KeyFault::Malformed);
}

#[test]
fn keys_of_other_kinds_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let kinds: [(&[&str], KeyFault); 4] = [
        (&["RSA", "-pkeyopt", "rsa_keygen_bits:1024"], KeyFault::Rsa),
        (&["EC", "-pkeyopt", "ec_paramgen_curve:P-256"], KeyFault::EllipticCurve),
        (&["ED448"], KeyFault::Ed448),
        (&["X25519"], KeyFault::X25519),
    ];
    for (kind, expected) in kinds {
        let path = directory.path().join(kind[0]);
        let mut arguments = vec!["genpkey", "-quiet", "-out", path.to_str().unwrap(), "-algorithm"];
        arguments.extend(kind);
        arguments.retain(|argument| *argument != "-quiet");
        if openssl(&arguments).is_none() {
            return;
        }
        assert_eq!(fault(&path), expected);
    }
}

#[test]
fn a_key_that_openssl_made_is_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made.pem");
    let file = path.to_str().unwrap();
    if openssl(&["genpkey", "-algorithm", "ed25519", "-out", file]).is_none() {
        return;
    }
    let adopted = read_key_file(&path).unwrap();
    let shown = openssl(&["pkey", "-in", file, "-noout", "-text_pub"]).unwrap();
    assert_eq!(public_key_of(&shown), adopted.peer_id().to_hex());
}

#[test]
fn openssl_reads_ours() {
    let directory = tempfile::tempdir().unwrap();
    let key = generate().unwrap();
    create(directory.path(), &key).unwrap();
    let path = directory.path().join(IDENTITY_FILE);
    if let Some(shown) = openssl(&["pkey", "-in", path.to_str().unwrap(), "-noout", "-text_pub"]) {
        assert_eq!(public_key_of(&shown), key.peer_id().to_hex());
    }
}

/// The hex digits of the public key in openssl's text form.
fn public_key_of(shown: &str) -> String {
    let (_, digits) = shown.split_once("pub:").unwrap();
    digits.chars().filter(char::is_ascii_hexdigit).collect()
}
