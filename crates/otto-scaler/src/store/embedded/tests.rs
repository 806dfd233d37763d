use super::*;
use crate::store::tests_of_every_store as every;

fn store() -> (tempfile::TempDir, EmbeddedStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    (dir, store)
}

#[tokio::test]
async fn behaves_as_every_store() {
    let (_dir, store) = store();
    every::all(&store).await;
}

#[tokio::test]
async fn records_survive_reopening() {
    let (dir, store) = store();
    let record = every::record("t", 1);
    store.put(&record, None).await.unwrap();
    drop(store);
    // The thread closes the file soon after the last handle is gone.
    let store = otto_testkit::eventually("the file is closed", async || EmbeddedStore::open(dir.path()).ok()).await;
    assert_eq!(store.get("t").await.unwrap(), Some(record));
}

#[tokio::test]
async fn many_writes_share_a_commit() {
    let (_dir, store) = store();
    let records: Vec<Record> = (0..2000).map(|n| every::record(&format!("t{n}"), 1)).collect();
    let results = futures::future::join_all(records.iter().map(|record| store.put(record, None))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(store.load(0).await.unwrap().len(), 2000);
}

#[test]
fn opening_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let _first = EmbeddedStore::open(dir.path()).unwrap();
    let error = EmbeddedStore::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tasks.redb") && error.contains("another process"), "{error}");

    let missing = EmbeddedStore::open(&dir.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("none/tasks.redb") && missing.contains("No such file"), "{missing}");

    let garbage = tempfile::tempdir().unwrap();
    std::fs::write(garbage.path().join("tasks.redb"), "not a database at all, but long enough to look at").unwrap();
    let error = EmbeddedStore::open(garbage.path()).unwrap_err().to_string();
    assert!(error.contains("tasks.redb"), "{error}");
}

#[test]
fn a_file_of_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let database = redb::Database::create(dir.path().join("tasks.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 9).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = EmbeddedStore::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tasks.redb") && error.contains("format is 9"), "{error}");
}
