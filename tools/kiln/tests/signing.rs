//! Keys, signatures, and what the commands say of them.

mod harness;

use harness::{arg, kiln_err, kiln_ok, scratch, shared};
use std::fs;

#[test]
fn a_bundle_is_signed_verified_and_refused() {
    let folder = scratch("signing");
    let at = |name: &str| folder.join(name);
    for name in ["mine.pem", "other.pem"] {
        let _ = fs::remove_file(at(name));
    }
    let mine = kiln_ok(&["key", arg(&at("mine.pem"))]).trim().to_string();
    let other = kiln_ok(&["key", arg(&at("other.pem"))]).trim().to_string();
    assert!(mine.len() == 64 && mine != other, "{mine} {other}");
    assert_eq!(kiln_ok(&["key", "--public", arg(&at("mine.pem"))]).trim(), mine);
    let line = kiln_err(&["key", arg(&at("mine.pem"))], 2);
    assert!(line.contains("mine.pem") && line.contains("exists"), "{line}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(at("mine.pem")).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    let (bundle, signed) = (shared(), at("signed.kiln"));
    let said = kiln_ok(&["verify", arg(&bundle)]);
    assert!(said.contains("whole; not signed"), "{said}");
    let said = kiln_ok(&["sign", arg(&bundle), "--key", arg(&at("mine.pem")), "-o", arg(&signed)]);
    assert!(said.contains(&format!("signed by {mine}")), "{said}");
    for trust in [&[][..], &["--trust", &mine]] {
        let said = kiln_ok(&[&["verify", arg(&signed)], trust].concat());
        assert!(said.contains(&format!("whole; signed by {mine}")), "{said}");
    }
    let line = kiln_err(&["verify", arg(&signed), "--trust", &other], 1);
    assert!(line.contains(&format!("is signed by {mine}, and only {other} is trusted")), "{line}");
    let line = kiln_err(&["verify", arg(&bundle), "--trust", &mine], 1);
    assert!(line.contains("is not signed"), "{line}");

    let run = |bundle| ["run", bundle, "-p", "a rocket", "--steps", "1", "-o"];
    let trusted = ["--trust", &mine];
    let (signed, bundle, picture) = (arg(&signed), arg(&bundle), at("out.png"));
    kiln_ok(&[&run(signed)[..], &[arg(&picture)], &trusted].concat());
    let line = kiln_err(&[&run(bundle)[..], &[arg(&picture)], &trusted].concat(), 1);
    assert!(line.contains("is not signed"), "{line}");
    // With other kernels in it, a bundle has to be signed again.
    let said = kiln_ok(&["prepare", signed, "--into", arg(&at("carries.kiln"))]);
    assert!(said.contains("it is not signed any more"), "{said}");
    let line = kiln_err(&["prepare", arg(&at("carries.kiln")), "--trust", &mine], 1);
    assert!(line.contains("is not signed"), "{line}");
}

/// The example of RFC 8410: its private key (section 10.3), and its public key (10.1).
const RFC_8410: [&str; 2] = [
    "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
",
    "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1",
];

#[test]
fn keys_in_the_format_of_rfc_8410_are_read() {
    let path = scratch("signing").join("rfc8410.pem");
    fs::write(&path, RFC_8410[0]).expect("it is written");
    assert_eq!(kiln_ok(&["key", "--public", arg(&path)]).trim(), RFC_8410[1]);
    for wrong in ["", "text", &RFC_8410[0].replace("MC4C", "MC4D")] {
        fs::write(&path, wrong).expect("it is written");
        let line = kiln_err(&["key", "--public", arg(&path)], 2);
        assert!(line.contains("is no secret Ed25519 key in PEM"), "{line}");
    }
}

#[test]
fn compile_signs() {
    let folder = scratch("signing");
    let (key, bundle) = (folder.join("compile.pem"), folder.join("compiled.kiln"));
    let _ = fs::remove_file(&key);
    let public = kiln_ok(&["key", arg(&key)]);
    let compile = ["compile", "--model", "emoji-256", "--no-prepare", "-o", arg(&bundle), "--sign"];
    kiln_ok(&[&compile[..], &[arg(&key)]].concat());
    let said = kiln_ok(&["verify", arg(&bundle), "--trust", public.trim()]);
    assert!(said.contains("whole; signed by"), "{said}");
    let line = kiln_err(&[&compile[..], &["/no/such.pem"]].concat(), 2);
    assert!(line.contains("cannot read the key /no/such.pem"), "{line}");
    let line = kiln_err(&[&compile[..], &[arg(&bundle)]].concat(), 2);
    assert!(line.contains("is the same file as --sign"), "{line}");
}
