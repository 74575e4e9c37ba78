//! Builds and runs the C and Java programs of `runtime/examples` with the tools of the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the runtime.
fn runtime() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtime")
}

/// The folder in which the build puts `libkiln_runtime.so`: that of the test.
fn libraries() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(folder.join("libkiln_runtime.so").exists(), "no library in {}", folder.display());
    folder
}

/// Runs a command, which must succeed. Returns its output.
pub fn output(command: &mut Command) -> String {
    // Cargo's path would precede the program's own, and may lead to an older build.
    let output = command.env_remove("LD_LIBRARY_PATH").output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; tools/setup/opencl.sh --tests installs it")
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

fn gcc(out: &Path) -> Command {
    let libraries = libraries();
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-O1", "-g"]);
    gcc.arg("-I").arg(runtime().join("include")).arg("-o").arg(out);
    gcc.arg("-L").arg(&libraries).arg(format!("-Wl,-rpath,{}", libraries.display()));
    gcc
}

/// Compiles a C program of the examples into `folder`, optionally with sanitizers.
///
/// AddressSanitizer is used because valgrind does not know the AVX-512 code that PoCL generates.
pub fn c_program(folder: &Path, name: &str, sanitize: bool) -> PathBuf {
    let program = folder.join(format!("{name}{}", if sanitize { "-asan" } else { "" }));
    let mut gcc = gcc(&program);
    if sanitize {
        gcc.arg("-fsanitize=address,undefined").arg("-fno-sanitize-recover=all");
        gcc.arg(runtime().join("../tools/testkit/src/sanitizer.c"));
    }
    let source = runtime().join("examples").join(name).with_extension("c");
    output(gcc.arg(source).args(["-lkiln_runtime", "-lpthread"]));
    program
}

/// Compiles a library that injects faults: `faulty_opencl`, which stands before the system's OpenCL
/// library, or `faulty_reads`, for `LD_PRELOAD`.
pub fn faulty_library(folder: &Path, name: &str) -> PathBuf {
    let library = folder.join(format!("{name}.so"));
    let source = runtime().join("../tools/testkit/src").join(name).with_extension("c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]);
    gcc.arg(source).arg("-o").arg(&library).args(["-ldl", "-Wl,--no-as-needed"]);
    if name == "faulty_opencl" {
        gcc.arg("-l:libOpenCL.so.1");
    }
    output(&mut gcc);
    library
}

/// Compiles the Java program with its library into `folder`. Returns the command that starts it.
pub fn java_program(folder: &Path) -> Command {
    let javac = output(Command::new("sh").args(["-c", "readlink -f \"$(command -v javac)\""]));
    let home = Path::new(javac.trim()).ancestors().nth(2).expect("a JDK").to_owned();
    let mut gcc = gcc(&folder.join("libkiln_jni.so"));
    gcc.args(["-shared", "-fPIC"]).arg("-I").arg(home.join("include"));
    gcc.arg("-I").arg(home.join("include/linux")).arg(runtime().join("java/kiln_jni.c"));
    output(gcc.arg("-lkiln_runtime"));
    let mut javac = Command::new("javac");
    javac.args(["-Xlint:all", "-Werror", "-d"]).arg(folder);
    javac.arg(runtime().join("java/kiln/KilnRuntime.java"));
    javac.arg(runtime().join("java/kiln/KilnException.java"));
    output(javac.arg(runtime().join("examples/Generate.java")));
    let mut java = Command::new("java");
    // The driver's compiler replaces signal handlers that the JVM needs. This library keeps both.
    java.env("LD_PRELOAD", home.join("lib/libjsig.so"));
    java.arg("-Xcheck:jni").arg(format!("-Djava.library.path={}", folder.display()));
    java.arg("-cp").arg(folder).arg("Generate");
    java
}

/// The picture of a PNG file as RGBA.
pub fn rgba(path: &Path) -> Vec<u8> {
    let file = std::io::BufReader::new(fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut rgb).unwrap();
    match reader.info().color_type {
        png::ColorType::Grayscale => {
            rgb.iter().flat_map(|&level| [level, level, level, 255]).collect()
        }
        _ => rgb.chunks_exact(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect(),
    }
}
