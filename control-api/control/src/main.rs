//! `remora`.

/// Gives pages back quickly after a burst; one arena per CPU would hold on to them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    remora_control::cli::main()
}
