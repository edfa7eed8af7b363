//! Commands and flags.

use clap::{Args, Parser, Subcommand};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use weir_engine::flow::EpochPolicy;

use crate::{checkpoints, connectors, demo, lasting, manual, processes, run};

/// Exit code for a script or flag that cannot be planned.
const REFUSED: u8 = 2;
/// Exit code for a job that failed while it ran.
const FAILED: u8 = 1;

#[derive(Parser)]
#[command(name = "weir", version, about = "A SQL stream processor for telemetry")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a script: all its INSERTs, until their inputs end or Ctrl-C
    Run(RunArgs),
    /// Prints the plans of a script's INSERTs, and what they guarantee
    Explain {
        /// The script
        file: PathBuf,
    },
    /// Runs a whole system in this process: simulated devices, their broker, a script, and a judge
    Demo(demo::DemoArgs),
    /// Lists the checkpoints of a state and verifies them; describes one
    Checkpoints(checkpoints::CheckpointsArgs),
    /// Prints the manual of all connector options, as Markdown
    Manual,
    /// A process of a job that `run --processes` started
    #[command(hide = true)]
    Process,
}

#[derive(Args, Clone)]
struct RunArgs {
    /// The script
    file: PathBuf,
    /// Workers (threads) a process
    #[arg(short, long, default_value_t = 1)]
    workers: usize,
    /// Processes on this machine
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// How epochs are cut: a time (`10ms`) or a number of rows (`100000rows`); by default 10ms, and
    /// by rows, few at first, if all inputs end
    #[arg(long, value_parser = parse_epoch)]
    epoch: Option<EpochPolicy>,
    /// Keeps the job's state here, a folder or the URL of an object store: a job that is started
    /// again with it goes on where it was, and writes no row twice
    #[arg(long, value_name = "FOLDER|URL")]
    state: Option<String>,
    /// Where the cut logs go, if --state is not on this machine: a folder, or the URL of an object
    /// store for logs that outlive it, at the price of its latency
    #[arg(long, value_name = "FOLDER|URL", requires = "state")]
    log: Option<String>,
    /// The least time between two checkpoints, for instance `500ms`, `10s` or `2min`
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    checkpoint_interval: Duration,
    /// Prints a digest of the rows of each sink at the end
    #[arg(long)]
    digest: bool,
    /// Prints no progress and no summary
    #[arg(short, long)]
    quiet: bool,
    /// Writes the final counters as JSON to this file
    #[arg(long)]
    report: Option<PathBuf>,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time = weir_connect::options::parse_duration(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| format!("`{text}` is no time like `500ms`, `10s` or `2min`"))
}

fn parse_epoch(text: &str) -> Result<EpochPolicy, String> {
    let wrong = || format!("`{text}` is neither a time like `10ms` nor rows like `100000rows`");
    let number = |digits: &str| digits.trim().parse::<u64>().ok().filter(|n| *n > 0);
    if let Some(rows) = text.strip_suffix("rows") {
        let rows = number(rows).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong)?;
        return Ok(EpochPolicy::rows(rows));
    }
    let interval = text.strip_suffix("ms").and_then(number).ok_or_else(wrong)?;
    let interval = i64::try_from(interval).map_err(|_| wrong())?;
    Ok(EpochPolicy::Live { interval, rows: run::LIVE_ROWS_MAX })
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEIR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Run(args) => run_script(args),
        Command::Explain { file } => explain(&file),
        Command::Demo(args) => run_demo(&args),
        Command::Checkpoints(args) => list_checkpoints(&args),
        Command::Manual => {
            out(&manual::markdown(&connectors::all()));
            ExitCode::SUCCESS
        }
        Command::Process => processes::child(),
    }
}

/// Prints to standard output; a closed pipe is no error.
pub(crate) fn out(text: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn read_script(file: &PathBuf) -> Result<(String, String), ExitCode> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok((file.display().to_string(), text)),
        Err(error) => {
            eprintln!("error: cannot read the script {}: {error}", file.display());
            Err(ExitCode::from(REFUSED))
        }
    }
}

/// A planned script with its name and text.
struct Planned {
    script: weir_queries::Script,
    name: String,
    text: String,
}

fn plan(file: &PathBuf) -> Result<Planned, ExitCode> {
    let (name, text) = read_script(file)?;
    match weir_queries::plan_script(&name, &text, &connectors::all()) {
        Ok(script) => Ok(Planned { script, name, text }),
        Err(diagnostics) => {
            eprintln!("{diagnostics}");
            Err(ExitCode::from(REFUSED))
        }
    }
}

/// Trouble at a table points at the table's address in the script.
fn print_trouble(planned: &Planned, trouble: run::Trouble) {
    let table = trouble.table.as_deref();
    let place = table.and_then(|t| weir_queries::address_of(&planned.text, t));
    let message = match table {
        Some(table) => format!("table `{table}`: {}", trouble.message),
        None => trouble.message,
    };
    match place {
        Some(span) => {
            let mut error = weir_queries::Diagnostic::new(span, message);
            error.hint = trouble.hint;
            let (name, text) = (&planned.name, &planned.text);
            eprintln!("{}", weir_queries::Diagnostics::new(name, text, vec![error]));
        }
        None => {
            let hint = trouble.hint.map(|h| format!("\n  hint: {h}")).unwrap_or_default();
            eprintln!("error: {message}{hint}");
        }
    }
}

fn explain(file: &PathBuf) -> ExitCode {
    let script = match plan(file) {
        Ok(planned) => planned.script,
        Err(code) => return code,
    };
    let connectors = connectors::all();
    let mut texts = script.explains.clone();
    for job in &script.jobs {
        match weir_queries::explain(job, &connectors) {
            Ok(text) => texts.push(text),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::from(REFUSED);
            }
        }
    }
    out(&format!("{}\n", texts.join("\n")));
    ExitCode::SUCCESS
}

fn list_checkpoints(args: &checkpoints::CheckpointsArgs) -> ExitCode {
    match checkpoints::run(args) {
        Ok((text, sound)) => {
            out(&text);
            if sound { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        Err(error) => {
            let hint = error.hint.map(|h| format!("\n  hint: {h}")).unwrap_or_default();
            eprintln!("error: {}{hint}", error.message);
            ExitCode::from(REFUSED)
        }
    }
}

fn run_demo(args: &demo::DemoArgs) -> ExitCode {
    match demo::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(FAILED)
        }
    }
}

fn run_script(args: RunArgs) -> ExitCode {
    let planned = match plan(&args.file) {
        Ok(planned) => planned,
        Err(code) => return code,
    };
    let script = &planned.script;
    if !script.explains.is_empty() {
        out(&format!("{}\n", script.explains.join("\n")));
    }
    if script.jobs.is_empty() {
        if script.explains.is_empty() {
            eprintln!(
                "error: {} has no INSERT INTO, so there is nothing to run",
                args.file.display()
            );
            return ExitCode::from(REFUSED);
        }
        return ExitCode::SUCCESS;
    }
    let options = run::RunOptions {
        workers: args.workers.max(1),
        processes: args.processes.max(1),
        epoch: args.epoch,
        digest: args.digest,
        quiet: args.quiet,
        state: args.state.map(|store| lasting::StateOptions {
            store,
            log: args.log,
            interval: i64::try_from(args.checkpoint_interval.as_millis()).unwrap_or(i64::MAX),
        }),
        report: args.report,
    };
    let mut tell = |trouble| print_trouble(&planned, trouble);
    if run::run_script(script.jobs.clone(), &options, &mut tell) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    }
}
