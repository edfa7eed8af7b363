//! A store as the engine's state store knows it.

use weir_engine::connector::ConnectorError;
use weir_engine::store::Objects;

use super::{Kind, PutMode, PutOutcome, Store};

impl Objects for Store {
    fn list(&self, folder: &str) -> Result<Vec<String>, ConnectorError> {
        Ok(Store::list(self, folder)?.into_iter().map(|entry| entry.path).collect())
    }

    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, ConnectorError> {
        match self.kind(path)? {
            Kind::File(_) => Ok(Some(self.read_all(path)?.to_vec())),
            Kind::Folder | Kind::Nothing => Ok(None),
        }
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<bool, ConnectorError> {
        let outcome = Store::put(self, path, bytes, PutMode::IfAbsent)?;
        Ok(outcome == PutOutcome::Written)
    }

    fn delete(&self, path: &str) -> Result<(), ConnectorError> {
        Store::delete(self, path)
    }

    fn name(&self, path: &str) -> String {
        Store::name(self, path)
    }
}
