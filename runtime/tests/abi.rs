//! The C interface, from C, from Java, and with arguments that are wrong.

mod small;

use kiln_testkit::native;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use kiln_runtime::ffi::bundle::*;
use kiln_runtime::ffi::devices::*;
use kiln_runtime::ffi::generate::*;
use kiln_runtime::ffi::picture::*;
use kiln_runtime::ffi::session::*;
use kiln_runtime::ffi::{KilnStatus, kiln_last_error};
use small::Small;

fn bundle(folder: &Path) -> PathBuf {
    let merges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
    let path = folder.join("small.kiln");
    Small::default().write(&path, &fs::read(merges).unwrap());
    path
}

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn last_error() -> String {
    // SAFETY: the text is valid until this thread's next failure.
    unsafe { CStr::from_ptr(kiln_last_error()) }.to_str().unwrap().to_owned()
}

#[test]
fn the_command_c_and_java_make_one_picture() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bundle = bundle(folder.path());
    let request = ["a red house", "3", "7"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
    command.arg(&bundle).args(["--prompt", request[0], "--steps", request[1], "--seed"]);
    native::output(command.arg(request[2]).arg("-o").arg(at("run.png")));
    let expected = native::rgba(&at("run.png"));

    let program = native::c_program(folder.path(), "generate", true);
    let said = native::output(Command::new(program).args([&bundle, &at("c")]).args(request));
    assert!(said.contains("step 3 of 3") && said.contains("128 x 128"), "{said}");
    assert!(said.contains("unet_time") && said.contains("told 5 times"), "{said}");
    assert!(fs::read(at("c")).unwrap() == expected);

    let mut java = native::java_program(folder.path());
    let said = native::output(java.args([&bundle, &at("java")]).args(request));
    assert!(said.contains("SAMPLE 3 of 3, preview 128 x 128"), "{said}");
    assert!(fs::read(at("java")).unwrap() == expected);
}

#[test]
fn cancels_trims_and_opens_leak_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path());
    for (sanitize, cycles) in [(true, ["20", "4"]), (false, ["100", "20"])] {
        let program = native::c_program(folder.path(), "cycles", sanitize);
        let said = native::output(Command::new(program).arg(&bundle).args(cycles));
        let mib = |when: &str| -> f64 {
            let line = said.lines().find_map(|line| line.strip_prefix(when)).expect("a line");
            line.trim_matches([':', ' ', 'M', 'i', 'B']).parse().expect("a number")
        };
        if !sanitize {
            let first = mib("after two pictures");
            assert!(mib("after the cancels") < first + 16.0, "{said}");
            assert!(mib("after the opens") < first + 32.0, "{said}");
        }
    }
}

#[test]
fn a_part_of_a_file_is_opened_by_its_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(bundle(folder.path())).unwrap();
    let package = folder.path().join("package.apk");
    fs::write(&package, [&[1; 300][..], &bytes, &[2; 300]].concat()).unwrap();
    let file = fs::File::open(&package).unwrap();
    let (mut opened, mut refused) = (ptr::null_mut(), ptr::null_mut());
    let mut session = ptr::null_mut();
    // SAFETY: all pointers are valid, and each object is closed once.
    unsafe {
        let status = kiln_bundle_open_fd(file.as_raw_fd(), 300, bytes.len() as u64, &mut opened);
        assert_eq!(status, KilnStatus::Ok, "{}", last_error());
        drop(file);
        let create = kiln_session_create(opened, ptr::null(), None, ptr::null_mut(), &mut session);
        assert_eq!(create, KilnStatus::Ok, "{}", last_error());
        let network = CStr::from_ptr(kiln_bundle_network(opened, 0));
        assert_eq!(network, c"text_encoder");
        assert!(kiln_bundle_network(opened, 99).is_null());
        kiln_bundle_close(opened);
        assert_eq!(make(session, |_| {}), Ok(16 * 16 * 4));
        kiln_session_close(session);
        for fd in [-1, i32::MAX] {
            assert_eq!(kiln_bundle_open_fd(fd, 0, 1, &mut refused), KilnStatus::Input);
            assert!(refused.is_null() && last_error().contains(&fd.to_string()));
        }
    }
}

/// Makes a picture; the answer is how many bytes it has.
fn make(
    session: *const KilnSession,
    change: impl FnOnce(&mut KilnRequest),
) -> Result<usize, (KilnStatus, String)> {
    let mut picture = ptr::null_mut();
    // SAFETY: the session is open, the rest is valid.
    unsafe {
        let mut request = std::mem::zeroed();
        kiln_request_init(&mut request);
        request.steps = 2;
        change(&mut request);
        let status = kiln_session_generate(session, &request, None, ptr::null_mut(), &mut picture);
        if status != KilnStatus::Ok {
            assert!(picture.is_null());
            return Err((status, last_error()));
        }
        let (width, height) = (kiln_picture_width(picture), kiln_picture_height(picture));
        let mut rgba = vec![0; (width * height * 4) as usize];
        assert_eq!(kiln_picture_rgba(picture, rgba.as_mut_ptr(), 5), KilnStatus::Input);
        let status = kiln_picture_rgba(picture, rgba.as_mut_ptr(), rgba.len());
        assert_eq!(status, KilnStatus::Ok);
        assert!(rgba.chunks_exact(4).all(|pixel| pixel[3] == 255));
        kiln_picture_free(picture);
        Ok(rgba.len())
    }
}

#[test]
fn wrong_arguments_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = c_path(&bundle(folder.path()));
    let expect = |status: KilnStatus, wanted: KilnStatus, word: &str| {
        assert_eq!(status, wanted, "{}", last_error());
        assert!(last_error().contains(word), "{word}: {}", last_error());
    };
    // SAFETY: pointers are valid or NULL, which is allowed, and each object is closed once.
    unsafe {
        let (mut bundle, mut session) = (ptr::null_mut(), ptr::null_mut());
        expect(kiln_bundle_open(ptr::null(), &mut bundle), KilnStatus::Input, "the path is NULL");
        expect(kiln_bundle_open(path.as_ptr(), ptr::null_mut()), KilnStatus::Input, "NULL");
        expect(kiln_bundle_open(c"/no".as_ptr(), &mut bundle), KilnStatus::Input, "/no");
        assert_eq!(kiln_bundle_open(path.as_ptr(), &mut bundle), KilnStatus::Ok);
        let mut options = std::mem::zeroed();
        kiln_session_options_init(&mut options);
        options.budget_bytes = 1000;
        let mut create = |bundle, options: &KilnSessionOptions| {
            kiln_session_create(bundle, options, None, ptr::null_mut(), &mut session)
        };
        expect(create(bundle, &options), KilnStatus::Budget, "1000 are allowed");
        options.budget_bytes = 0;
        options.cache_folder = c"/no/such/folder".as_ptr();
        expect(create(bundle, &options), KilnStatus::Input, "/no/such/folder");
        options.cache_folder = ptr::null();
        options.device = c"nothing".as_ptr();
        expect(create(bundle, &options), KilnStatus::Device, "nothing");
        options.device = ptr::null();
        expect(create(ptr::null_mut(), &options), KilnStatus::Input, "the bundle is NULL");
        options.height = 512;
        expect(create(bundle, &options), KilnStatus::Input, "16x512");
        options.height = 16;
        let (mut width, mut height) = (0, 0);
        assert_eq!(kiln_bundle_size(bundle, 0, &mut width, &mut height), KilnStatus::Ok);
        assert_eq!((width, height), (16, 16));
        let status = kiln_bundle_size(bundle, 1, &mut width, &mut height);
        expect(status, KilnStatus::Input, "no size 1");
        assert_eq!(create(bundle, &options), KilnStatus::Ok);
        let latent = [1.0; 64];
        let given = |request: &mut KilnRequest| {
            (request.initial_latent, request.latent_elems) = (latent.as_ptr(), latent.len());
        };
        assert_eq!(make(session, given), Ok(16 * 16 * 4));
        let refused = make(session, |request| {
            given(request);
            request.latent_elems = 63;
        });
        assert!(refused.unwrap_err().1.contains("64 finite values, has 63"));
        let pixels = [127u8; 8];
        let image = |rgba, width, height| KilnImage { rgba, width, height, strength: 0.5 };
        for (image, word) in [
            (image(ptr::null(), 2, 1), "pixels is NULL"),
            (image(pixels.as_ptr(), 0, 1), "0 x 1 pixels"),
            (image(pixels.as_ptr(), u32::MAX, u32::MAX), "4294967295 x 4294967295 pixels"),
            (image(pixels.as_ptr(), 2, 1), "--with-encoder"),
        ] {
            let refused = make(session, |request| request.initial_image = &image).unwrap_err();
            assert!(refused.0 == KilnStatus::Input && refused.1.contains(word), "{refused:?}");
        }
        for (sampler, steps) in [(c"unheard-of", 2), (c"ddim", 2000)] {
            let change = |request: &mut KilnRequest| {
                (request.sampler, request.steps) = (sampler.as_ptr(), steps);
            };
            assert_eq!(make(session, change).unwrap_err().0, KilnStatus::Input);
        }
        assert_eq!(make(session, |_| {}), Ok(1024));
        kiln_bundle_close(bundle);
        kiln_session_close(session);
        kiln_session_close(ptr::null_mut());
        kiln_picture_free(ptr::null_mut());
        expect(kiln_session_cancel(ptr::null()), KilnStatus::Input, "the session is NULL");
        assert_eq!(kiln_devices_count(ptr::null()), 0);
    }
}

#[test]
fn devices_are_listed_and_memory_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = c_path(&bundle(folder.path()));
    // SAFETY: pointers are valid, and each object is closed once.
    unsafe {
        let (mut devices, mut device) = (ptr::null_mut(), std::mem::zeroed());
        assert_eq!(kiln_devices_list(&mut devices), KilnStatus::Ok, "{}", last_error());
        assert_eq!(kiln_devices_get(devices, 0, &mut device), KilnStatus::Ok);
        assert!(!CStr::from_ptr(device.name).is_empty() && device.global_mem_bytes > 0);
        assert_eq!(kiln_devices_get(devices, 99, &mut device), KilnStatus::Input);
        kiln_devices_free(devices);

        let (mut bundle, mut session) = (ptr::null_mut(), ptr::null_mut());
        assert_eq!(kiln_bundle_open(path.as_ptr(), &mut bundle), KilnStatus::Ok);
        let mut info = std::mem::zeroed();
        assert_eq!(kiln_bundle_info(bundle, &mut info), KilnStatus::Ok);
        assert_eq!((info.width, info.network_count), (16, 5));
        let context = ptr::null_mut();
        let create = kiln_session_create(bundle, ptr::null(), None, context, &mut session);
        assert_eq!(create, KilnStatus::Ok, "{}", last_error());
        let device_bytes = || {
            let mut memory = std::mem::zeroed();
            assert_eq!(kiln_session_memory(session, &mut memory), KilnStatus::Ok);
            memory.device_bytes
        };
        assert_eq!(device_bytes(), info.device_bytes);
        for _ in 0..2 {
            assert_eq!(make(session, |_| {}), Ok(1024));
            assert_eq!(device_bytes(), info.device_bytes);
            assert_eq!(kiln_session_trim(session), KilnStatus::Ok);
            assert_eq!(device_bytes(), 0);
        }
        kiln_bundle_close(bundle);
        kiln_session_close(session);
    }
}

#[test]
fn a_named_opencl_library_is_used_or_its_failure_explained() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path());
    let run = |variable: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        command.arg(&bundle).args(["--prompt", "a", "--steps", "1", "-o"]);
        command.arg(folder.path().join("out.png")).args(args);
        if !variable.is_empty() {
            command.env("OPENCL_DYLIB_PATH", variable);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (variable, args) in [
        ("", &["--opencl", "libOpenCL.so.1"][..]),
        ("/no/such.so;libOpenCL.so.1", &[]),
        // What is named for one run comes before what is named for all.
        ("/no/such.so", &["--opencl", "libOpenCL.so.1"]),
    ] {
        let (code, message) = run(variable, args);
        assert_eq!(code, Some(0), "{message}");
    }
    for (variable, args, tried) in [
        ("", &["--opencl", "/no/such.so"][..], &["/no/such.so ("][..]),
        ("libOpenCL.so.1", &["--opencl", "libc.so.6"], &["libc.so.6 (it has no clGetPlatformIDs"]),
        ("/no/such.so;/etc/passwd", &[], &["/no/such.so (", "/etc/passwd ("]),
    ] {
        let (code, message) = run(variable, args);
        assert_eq!(code, Some(3), "{message}");
        assert!(tried.iter().all(|part| message.contains(part)), "{message}");
    }
}
