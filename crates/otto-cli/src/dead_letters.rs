//! `otto dead-letters`.

use std::io::{self, Write};

use otto_proto::v1::{DeadLetter, ListDeadLettersRequest, ReplayDeadLetterRequest};
use serde_json::json;

use crate::args::{Cli, DeadLetters, Output};
use crate::exit::{Exit, Failure};
use crate::output::{self, Column, Row};
use crate::times;

pub(crate) async fn run(cli: &Cli, action: &DeadLetters) -> Result<Exit, Failure> {
    match action {
        DeadLetters::List { limit } => list(cli, *limit).await,
        DeadLetters::Replay { id } => replay(cli, id).await,
    }
}

async fn list(cli: &Cli, limit: usize) -> Result<Exit, Failure> {
    let mut client = cli.tasks_client()?;
    let mut rows = Vec::new();
    let mut page_token = String::new();
    while rows.len() < limit {
        let page_size = (limit - rows.len()).min(1_000) as u32;
        let request = ListDeadLettersRequest { page_size, page_token };
        let page = client.list_dead_letters(request).await.map_err(|status| cli.scaler_said(status))?.into_inner();
        rows.extend(page.dead_letters.iter().map(row));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let columns =
        [Column::kept("ID"), Column::dropped("TASK", 2), Column::dropped("AGE", 1), Column::elastic("REASON")];
    output::print(cli.output, &columns, &rows)?;
    Ok(Exit::Ok)
}

fn row(letter: &DeadLetter) -> Row {
    let at = letter.dead_at.as_ref().and_then(times::from_proto);
    let task = letter.fields.get("task_id").or_else(|| letter.fields.get("job_id"));
    let cells = vec![
        letter.id.clone(),
        task.unwrap_or(&letter.entry_id).chars().take(40).collect(),
        times::span(at, None),
        letter.reason.clone(),
    ];
    let json = json!({
        "id": letter.id,
        "entry_id": letter.entry_id,
        "reason": letter.reason,
        "fields": letter.fields,
        "dead_at": at.map(|time| time.to_string()),
    });
    Row { cells, json }
}

async fn replay(cli: &Cli, id: &str) -> Result<Exit, Failure> {
    let request = ReplayDeadLetterRequest { id: id.to_owned() };
    let answer = cli.tasks_client()?.replay_dead_letter(request).await.map_err(|status| cli.scaler_said(status))?;
    let entry_id = answer.into_inner().entry_id;
    let mut out = io::stdout().lock();
    match cli.output {
        Output::Json => writeln!(out, "{}", json!({ "entry_id": entry_id }))?,
        Output::Table => writeln!(out, "{entry_id}")?,
    }
    Ok(Exit::Ok)
}
