//! An object store: puts where nothing is, replies that are lost, requests that are done late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::fate::{Fate, Life, lock};
use crate::connector::ConnectorError;
use crate::store::Objects;

/// Requests that are on their way for long.
const LATE_MAX: usize = 3;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    late: Vec<(String, Vec<u8>)>,
    /// Whether nothing can be reached.
    away: bool,
}

/// The store.
pub(super) struct Shelf {
    fate: Arc<Fate>,
    /// Breaks it: pieces are put behind what names them.
    pieces_last: bool,
    state: Mutex<State>,
}

impl Shelf {
    pub(super) fn of(fate: &Arc<Fate>, pieces_last: bool) -> Arc<Shelf> {
        Arc::new(Shelf { fate: fate.clone(), pieces_last, state: Mutex::default() })
    }

    /// Something that was long on its way arrives; false: nothing was.
    pub(super) fn arrive(&self) -> bool {
        let mut state = lock(&self.state);
        if state.late.is_empty() {
            return false;
        }
        let chosen = self.fate.index(state.late.len());
        let (path, bytes) = state.late.remove(chosen);
        self.fate.note(&format!("a late put of {path}"));
        state.objects.entry(path).or_insert(bytes);
        true
    }

    /// The store is away, or back.
    pub(super) fn away(&self, away: bool) {
        lock(&self.state).away = away;
    }

    /// The paths that begin so, and the objects.
    pub(super) fn under(&self, start: &str) -> Vec<(String, Vec<u8>)> {
        let state = lock(&self.state);
        let objects = state.objects.iter().filter(|(path, _)| path.starts_with(start));
        objects.map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
    }

    /// Flips bits of an object.
    pub(super) fn damage(&self, path: &str) {
        let mut state = lock(&self.state);
        if let Some(bytes) = state.objects.get_mut(path).filter(|bytes| !bytes.is_empty()) {
            let at = self.fate.index(bytes.len());
            bytes[at] ^= 1 << self.fate.below(8);
        }
    }
}

/// The store, as a process has it.
pub(super) struct Shelved {
    pub(super) shelf: Arc<Shelf>,
    pub(super) life: Arc<Life>,
}

impl Shelved {
    fn operate(&self) -> Result<(), ConnectorError> {
        if !self.life.goes_on() {
            return Err(ConnectorError::retry("the process is no more"));
        }
        if lock(&self.shelf.state).away || self.shelf.fate.once_in(40) {
            return Err(ConnectorError::retry("the store cannot be reached"));
        }
        Ok(())
    }
}

impl Objects for Shelved {
    fn list(&self, folder: &str) -> Result<Vec<String>, ConnectorError> {
        self.operate()?;
        Ok(self.shelf.under(&format!("{folder}/")).into_iter().map(|(path, _)| path).collect())
    }

    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, ConnectorError> {
        self.operate()?;
        Ok(lock(&self.shelf.state).objects.get(path).cloned())
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<bool, ConnectorError> {
        self.operate()?;
        let lost = Err(ConnectorError::retry("the connection was lost"));
        let mut state = lock(&self.shelf.state);
        if self.shelf.pieces_last && path.ends_with(".pieces") {
            state.late.push((path.to_owned(), bytes));
            return Ok(true);
        }
        match self.shelf.fate.below(24) {
            0 if state.late.len() < LATE_MAX => {
                state.late.push((path.to_owned(), bytes));
                lost
            }
            chance => {
                let absent = !state.objects.contains_key(path);
                state.objects.entry(path.to_owned()).or_insert(bytes);
                if chance == 1 { lost } else { Ok(absent) }
            }
        }
    }

    fn delete(&self, path: &str) -> Result<(), ConnectorError> {
        self.operate()?;
        lock(&self.shelf.state).objects.remove(path);
        Ok(())
    }

    fn name(&self, path: &str) -> String {
        path.to_owned()
    }
}
