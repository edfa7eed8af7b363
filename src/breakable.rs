//! The `weir` command with guards that `WEIR_BREAK` switches off: see
//! `weir_sinks::postgres`. No release has it; `cargo xtask fault --broken` shows with it that fault
//! runs notice.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    weir_engine::clock::uptime();
    weir::cli::main()
}
