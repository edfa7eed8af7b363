//! Connections between the processes of a job.
//!
//! Process p listens at its own address and calls those before it; whoever calls says its number
//! first. What is not there yet is called again every few milliseconds, so that a set of processes
//! is connected as soon as the last one listens. Timely takes the connections from there.
//!
//! # Limits
//! Addresses are those of this machine's loopback: nothing is authenticated or encrypted.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::clock::Stopwatch;

/// The pause before another call.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a set may take until all are connected.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take where the job is to end before it has begun: links that some use already
/// must not be cut by others.
const GRACE: Duration = Duration::from_secs(3);

/// A connection to every process but `process` itself, in their order. `ended` says that it is no
/// longer wanted: then only what comes soon is waited for.
///
/// # Errors
/// The address cannot be listened at; others that do not come; a stop meanwhile.
pub(super) fn connect(
    addresses: &[String],
    process: usize,
    ended: impl Fn() -> bool,
) -> io::Result<Vec<Option<TcpStream>>> {
    let listener = TcpListener::bind(&addresses[process])?;
    listener.set_nonblocking(true)?;
    let mut links: Vec<Option<TcpStream>> = addresses.iter().map(|_| None).collect();
    let (began, mut ending) = (Stopwatch::start(), None);
    loop {
        for (other, address) in addresses.iter().enumerate().take(process) {
            if links[other].is_none() {
                links[other] = call(address, process)?;
            }
        }
        while let Some((number, link)) = answer(&listener)? {
            if number <= process || number >= addresses.len() || links[number].is_some() {
                return Err(io::Error::other(format!("process {number} calls, unexpected")));
            }
            links[number] = Some(link);
        }
        if links.iter().enumerate().all(|(other, link)| other == process || link.is_some()) {
            return Ok(links);
        }
        if ended() && ending.get_or_insert_with(Stopwatch::start).elapsed() > GRACE {
            return Err(io::Error::other("stopped"));
        }
        if began.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "other processes do not come"));
        }
        thread::sleep(PAUSE);
    }
}

/// Calls a process; `None` where it does not listen yet.
fn call(address: &str, process: usize) -> io::Result<Option<TcpStream>> {
    match TcpStream::connect(address) {
        Ok(mut link) => {
            link.set_nodelay(true)?;
            link.write_all(&(process as u64).to_be_bytes())?;
            Ok(Some(link))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a call, if there is one.
fn answer(listener: &TcpListener) -> io::Result<Option<(usize, TcpStream)>> {
    let mut link = match listener.accept() {
        Ok((link, _)) => link,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    link.set_nonblocking(false)?;
    link.set_nodelay(true)?;
    link.set_read_timeout(Some(PATIENCE))?;
    let mut number = [0; 8];
    link.read_exact(&mut number)?;
    link.set_read_timeout(None)?;
    Ok(Some((usize::try_from(u64::from_be_bytes(number)).unwrap_or(usize::MAX), link)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(count: usize) -> Vec<String> {
        let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        held.iter().map(|l| l.local_addr().unwrap().to_string()).collect()
    }

    #[test]
    fn three_processes_find_each_other_in_any_order() {
        let addresses = free(3);
        let start = |process: usize| {
            let addresses = addresses.clone();
            thread::spawn(move || connect(&addresses, process, || false).unwrap())
        };
        let last = start(2);
        thread::sleep(Duration::from_millis(50));
        let (middle, first) = (start(1), start(0));
        let mut sets = [first.join().unwrap(), middle.join().unwrap(), last.join().unwrap()];
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let said = [a as u8, b as u8];
            sets[a][b].as_mut().unwrap().write_all(&said).unwrap();
            let mut heard = [9; 2];
            sets[b][a].as_mut().unwrap().read_exact(&mut heard).unwrap();
            assert_eq!(heard, said);
        }
        assert!((0..3).all(|process| sets[process][process].is_none()));
    }

    #[test]
    fn a_stop_ends_the_waiting_but_cuts_no_link_that_others_use() {
        let error = connect(&free(2), 0, || true).unwrap_err();
        assert_eq!(error.to_string(), "stopped");
        let addresses = free(3);
        let sets: Vec<_> = (0..3)
            .map(|process| {
                let addresses = addresses.clone();
                thread::spawn(move || connect(&addresses, process, || true).is_ok())
            })
            .collect();
        assert!(sets.into_iter().all(|set| set.join().unwrap()));
    }
}
