//! Compiles the kernel programs with clang and generates their skeleton.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

/// The agent's programs.
const OBJECTS: [&str; 1] = ["main"];
/// The load harness's producer and empty hooks.
const HARNESS_OBJECTS: [&str; 2] = ["saturate", "empty"];

fn main() {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    // <linux/types.h> includes <asm/types.h>, which Debian keeps in the multiarch folder.
    let asm = format!("/usr/include/{arch}-linux-gnu");
    let clang = env::var("CLANG").ok().or_else(|| find_clang().map(str::to_owned));
    let harness = env::var_os("CARGO_FEATURE_HARNESS").map_or(&[][..], |_| &HARNESS_OBJECTS);
    for name in OBJECTS.iter().chain(harness) {
        let mut builder = SkeletonBuilder::new();
        builder.source(format!("src/bpf/{name}.bpf.c")).obj(out_dir.join(format!("{name}.o"))).clang_args([
            "-Wall",
            "-Werror",
            "-Wno-unused-parameter",
            "-idirafter",
            &asm,
        ]);
        if let Some(clang) = &clang {
            builder.clang(clang);
        }
        if let Err(err) = builder.build_and_generate(out_dir.join(format!("{name}.skel.rs"))) {
            panic!("the kernel programs do not compile (clang-14 or newer is needed; `CLANG` selects it): {err:#}");
        }
    }
    println!("cargo:rerun-if-changed=src/bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
}

/// Debian's clang packages install versioned names only.
fn find_clang() -> Option<&'static str> {
    let path = env::var_os("PATH")?;
    ["clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14"]
        .into_iter()
        .find(|name| env::split_paths(&path).any(|dir| dir.join(name).exists()))
}
