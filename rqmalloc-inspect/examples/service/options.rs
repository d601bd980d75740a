//! The command line.

/// What it says.
pub struct Options {
    /// `--port`: where to listen; 0: anywhere.
    pub port: u16,
    /// `--load`: seconds of load for each service; 0: none, serve.
    pub load_seconds: u64,
    /// `--connections`: how many the load has open.
    pub connections: usize,
    /// `--only`: the route that the load asks for, instead of all.
    pub only: Option<String>,
    /// `--alone`: load this service only.
    pub is_alone: bool,
    /// `--child`: end with the standard input.
    pub is_child: bool,
    /// Not `--no-layer`: each request of HTTP is one of rqmalloc.
    pub has_layer: bool,
    /// Not `--no-page`: the page is there, and requests are counted for it.
    pub has_page: bool,
}

const USAGE: &str = "options: --port PORT, --load SECONDS, --connections COUNT, \
                     --only items|pages|cached|streams|blocking|rayon|leaks|eats, --alone, --no-layer, --no-page";

impl Options {
    /// Reads the command line; what is wrong with it ends the program.
    pub fn from_arguments() -> Self {
        let mut options = Self {
            port: 3000,
            load_seconds: 0,
            connections: 32,
            only: None,
            is_alone: false,
            is_child: false,
            has_layer: true,
            has_page: true,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || arguments.next()?.parse::<u64>().ok();
            let is_known = match argument.as_str() {
                "--port" => number().map(|port| options.port = port as u16).is_some(),
                "--load" => number().map(|seconds| options.load_seconds = seconds).is_some(),
                "--connections" => {
                    number().map(|count| options.connections = count.max(1) as usize).is_some()
                }
                "--only" => {
                    options.only = arguments.next();
                    options.only.is_some()
                }
                "--alone" => {
                    options.is_alone = true;
                    true
                }
                "--child" => {
                    options.is_child = true;
                    true
                }
                "--no-layer" => {
                    options.has_layer = false;
                    true
                }
                "--no-page" => {
                    options.has_page = false;
                    true
                }
                _ => false,
            };
            if !is_known {
                eprintln!("{argument}: {USAGE}");
                std::process::exit(2);
            }
        }
        options
    }
}
