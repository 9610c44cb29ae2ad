//! `remora`, built with the tests so that they never meet a stale one.

fn main() -> std::process::ExitCode {
    remora_control::cli::main()
}
