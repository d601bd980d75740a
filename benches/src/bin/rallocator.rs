use std::process::ExitCode;

rallocator::rallocator!();

fn main() -> ExitCode {
    rqmalloc_benches::main(None)
}
