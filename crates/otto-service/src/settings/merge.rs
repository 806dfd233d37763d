//! Puts settings of the environment and the file in their place on the command line.
//!
//! The command line is parsed once to see which arguments it gives and which subcommand it chooses. For every other
//! argument that has a long flag, the environment and then the file are asked, and `--flag=VALUE` is put right behind
//! the program's or the subcommand's name. Then the whole is parsed again, by which clap checks all values with the
//! same rules (types, ranges, conflicts, requirements). The real environment is kept away from clap meanwhile: it would
//! not tell the user where a bad value came from.

use super::file::{self, File};
use super::{Exit, Secret};
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// No environment can hold this name.
const NO_VARIABLE: &str = "=";

type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

pub(super) struct Merge<'a> {
    /// As declared, for help.
    declared: Command,
    /// The same, blind to the real environment, for parsing.
    command: Command,
    args: Vec<OsString>,
    env: Environment<'a>,
}

/// What was put on the command line, to be named if clap refuses it.
struct Injected {
    flag: String,
    origin: String,
    help: String,
}

/// An argument found unset on the command line: what the environment or the file say instead.
struct Found {
    values: Vec<OsString>,
    origin: String,
}

impl<'a> Merge<'a> {
    pub(super) fn new(command: Command, args: Vec<OsString>, env: Environment<'a>) -> Self {
        let declared = prepare(command);
        let command = without_environment(declared.clone());
        Merge { declared, command, args, env }
    }

    pub(super) fn run(self) -> Result<ArgMatches, Exit> {
        let typed = match self.parse_leniently(&self.args) {
            Ok(matches) => matches,
            // Help is shown by the untouched command, so that it names the environment variables.
            Err(error)
                if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
            {
                return Err(Exit(self.declared.try_get_matches_from(&self.args).err().unwrap_or(error)));
            }
            Err(error) => return Err(Exit(error)),
        };
        let levels = self.levels(&typed);
        let file = self.config_path(&levels).map(|path| File::read(&path)).transpose()?;
        if let Some(file) = &file {
            file.check_keys(&accepted_keys(&self.command))?;
        }

        let mut line = self.args.clone();
        let mut injected = Vec::new();
        // From the innermost subcommand outwards, so that positions further left stay valid.
        for depth in (0..levels.len()).rev() {
            let Some(position) = self.position(&levels, depth) else { continue };
            let mut added = Vec::new();
            for arg in levels[depth].0.get_arguments() {
                let Some(flag) = arg.get_long().filter(|_| is_setting(arg)) else { continue };
                if given(&levels, arg) {
                    self.check_given_once(levels[depth].0, &levels, arg, flag)?;
                    continue;
                }
                if is_secret_file(levels[depth].0, arg) {
                    continue;
                }
                let Some(found) = self.find(levels[depth].0, &levels, arg, flag, file.as_ref())? else { continue };
                added.extend(typed_form(arg, flag, &found)?);
                injected.push(Injected {
                    flag: format!("--{flag}"),
                    origin: found.origin,
                    help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
                });
            }
            line.splice(position..position, added);
        }
        self.command.clone().try_get_matches_from(line).map_err(|error| Exit(explain(error, &injected)))
    }

    /// Parses; what is required may be missing.
    fn parse_leniently(&self, args: &[OsString]) -> Result<ArgMatches, clap::Error> {
        match self.command.clone().try_get_matches_from(args) {
            Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
                self.command.clone().ignore_errors(true).try_get_matches_from(args)
            }
            other => other,
        }
    }

    /// The command and its chosen subcommands, outermost first.
    fn levels<'m>(&'m self, matches: &'m ArgMatches) -> Vec<(&'m Command, &'m ArgMatches)> {
        let mut levels = vec![(&self.command, matches)];
        let mut last = (&self.command, matches);
        while let Some((name, matches)) = last.1.subcommand() {
            let Some(command) = last.0.find_subcommand(name) else { break };
            last = (command, matches);
            levels.push(last);
        }
        levels
    }

    /// Where a flag of the command at `depth` can be put: right behind its name.
    fn position(&self, levels: &[(&Command, &ArgMatches)], depth: usize) -> Option<usize> {
        if depth == 0 {
            return Some(1.min(self.args.len()));
        }
        let command = levels[depth].0;
        (1..self.args.len()).find_map(|index| {
            let word = self.args[index].to_str()?;
            if word != command.get_name() && !command.get_all_aliases().any(|alias| alias == word) {
                return None;
            }
            // The word may also be some argument's value: it is the subcommand if the line up to it chooses one.
            let matches = self.command.clone().ignore_errors(true).try_get_matches_from(&self.args[..=index]).ok()?;
            (self.levels(&matches).len() > depth).then_some(index + 1)
        })
    }

    fn config_path(&self, levels: &[(&Command, &ArgMatches)]) -> Option<PathBuf> {
        let typed = levels
            .iter()
            .rev()
            .find_map(|(_, matches)| matches.try_get_one::<PathBuf>("config").ok().flatten().cloned());
        let declared = self.command.get_arguments().find(|arg| arg.get_id() == "config")?;
        typed.or_else(|| {
            declared_variable(&self.declared, declared).and_then(|name| (self.env)(&name)).map(PathBuf::from)
        })
    }

    /// Refuses a secret that is typed in both of its forms.
    fn check_given_once(
        &self,
        command: &Command,
        levels: &[(&Command, &ArgMatches)],
        arg: &Arg,
        flag: &str,
    ) -> Result<(), Exit> {
        let file = is_secret(arg).then(|| secret_file_of(command, flag)).flatten();
        if file.is_some_and(|file| given(levels, file)) {
            return Err(Exit::usage(format!("--{flag} and --{flag}-file are both given, of which one is enough")));
        }
        Ok(())
    }

    /// Looks an argument up in the environment, then in the file. A secret may also be in a file of its own.
    fn find(
        &self,
        command: &Command,
        levels: &[(&Command, &ArgMatches)],
        arg: &Arg,
        flag: &str,
        file: Option<&File>,
    ) -> Result<Option<Found>, Exit> {
        let secret_file = is_secret(arg).then(|| secret_file_of(command, flag)).flatten();
        if let Some(path) = secret_file.and_then(|file_arg| {
            levels
                .iter()
                .find_map(|(_, matches)| matches.try_get_one::<PathBuf>(file_arg.get_id().as_str()).ok().flatten())
        }) {
            return read_secret(path.clone(), format!("--{flag}-file")).map(Some);
        }
        if let Some(variable) = declared_variable(&self.declared, arg) {
            if let Some(value) = (self.env)(&variable) {
                return Ok(Some(Found { values: vec![value], origin: format!("the environment variable {variable}") }));
            }
            let variable = format!("{variable}_FILE");
            if let Some(path) = secret_file.and_then(|_| (self.env)(&variable)) {
                return read_secret(path.into(), variable).map(Some);
            }
        }
        let Some(file) = file else { return Ok(None) };
        let shown = file.path.display();
        if let Some(value) = file.values.get(flag) {
            let values = file::texts(value)
                .map_err(|found| Exit::usage(format!("the key '{flag}' in {shown} (--config) has {found}")))?;
            let repeatable = matches!(arg.get_action(), ArgAction::Append);
            if !repeatable && (value.is_array() || value.is_table()) {
                return Err(Exit::usage(format!("the key '{flag}' in {shown} (--config) takes one value, not a list")));
            }
            let values = values.into_iter().map(OsString::from).collect();
            return Ok(Some(Found { values, origin: format!("the key '{flag}' in {shown} (--config)") }));
        }
        match secret_file.and_then(|_| file.values.get(&format!("{flag}-file"))).map(file::texts) {
            Some(Ok(paths)) if paths.len() == 1 => {
                read_secret(PathBuf::from(&paths[0]), format!("the key '{flag}-file' in {shown}")).map(Some)
            }
            Some(_) => {
                Err(Exit::usage(format!("the key '{flag}-file' in {shown} (--config) takes the path of a file")))
            }
            None => Ok(None),
        }
    }
}

/// Adds `--x-file` beside every secret `--x`, and keeps values of the environment out of the help.
fn prepare(command: Command) -> Command {
    let mut command = command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(prepare);
    let secrets: Vec<Arg> = command.get_arguments().filter(|arg| is_secret(arg)).cloned().collect();
    for secret in secrets {
        let Some(flag) = secret.get_long() else { continue };
        if secret_file_of(&command, flag).is_some() {
            continue;
        }
        let mut arg = Arg::new(format!("{}_file", secret.get_id()))
            .long(format!("{flag}-file"))
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .hide_env_values(true)
            .global(secret.is_global_set())
            .help(format!("File that holds the value of --{flag}"));
        if let Some(variable) = secret.get_env() {
            let mut name = variable.to_owned();
            name.push("_FILE");
            arg = arg.env(name);
        }
        command = command.arg(arg);
    }
    command
}

/// The same command, whose arguments with a long flag do not read the real environment.
fn without_environment(command: Command) -> Command {
    command
        .mut_args(|arg| if arg.get_env().is_some() && is_setting(&arg) { arg.env(NO_VARIABLE) } else { arg })
        .mut_subcommands(without_environment)
}

/// The environment variable an argument was declared with. The command used for parsing has forgotten it.
fn declared_variable(declared: &Command, arg: &Arg) -> Option<String> {
    fn search(command: &Command, arg: &Arg) -> Option<String> {
        let own = command.get_arguments().find(|a| a.get_id() == arg.get_id() && a.get_long() == arg.get_long());
        match own.and_then(Arg::get_env) {
            Some(name) => Some(name.to_string_lossy().into_owned()),
            None => command.get_subcommands().find_map(|sub| search(sub, arg)),
        }
    }
    search(declared, arg)
}

/// Settings have a long flag and a value or switch; `--help` and `--version` are none.
fn is_setting(arg: &Arg) -> bool {
    arg.get_long().is_some()
        && matches!(
            arg.get_action(),
            ArgAction::Set | ArgAction::Append | ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count
        )
}

fn is_secret(arg: &Arg) -> bool {
    arg.get_long().is_some() && arg.get_value_parser().type_id() == TypeId::of::<Secret>()
}

fn secret_file_of<'c>(command: &'c Command, flag: &str) -> Option<&'c Arg> {
    let name = format!("{flag}-file");
    command.get_arguments().find(|arg| arg.get_long() == Some(&name))
}

/// Whether this argument only says where another one's value is.
fn is_secret_file(command: &Command, arg: &Arg) -> bool {
    let target = arg.get_long().and_then(|flag| flag.strip_suffix("-file"));
    target.is_some_and(|target| command.get_arguments().any(|a| a.get_long() == Some(target) && is_secret(a)))
}

/// Whether the command line itself gives the argument, at any level (global arguments may stand at each).
fn given(levels: &[(&Command, &ArgMatches)], arg: &Arg) -> bool {
    let id = arg.get_id().as_str();
    levels.iter().any(|(_, matches)| {
        // Asking for an id that a level does not know panics, so it is looked up first.
        matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
    })
}

fn accepted_keys(command: &Command) -> Vec<String> {
    fn collect(command: &Command, keys: &mut Vec<String>) {
        let own =
            command.get_arguments().filter(|arg| is_setting(arg) && arg.get_id() != "config" && !arg.is_hide_set());
        keys.extend(own.filter_map(|arg| arg.get_long().map(str::to_owned)));
        command.get_subcommands().for_each(|sub| collect(sub, keys));
    }
    let mut keys = Vec::new();
    collect(command, &mut keys);
    keys.sort();
    keys.dedup();
    keys
}

fn read_secret(path: PathBuf, named_by: String) -> Result<Found, Exit> {
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Exit::usage(format!("cannot read {} ({named_by}): {error}", path.display())))?;
    let value = text.trim_end_matches(['\n', '\r']);
    if value.is_empty() {
        return Err(Exit::usage(format!("{} ({named_by}) is empty", path.display())));
    }
    Ok(Found { values: vec![value.into()], origin: format!("the file {} ({named_by})", path.display()) })
}

/// The words to put on the command line.
fn typed_form(arg: &Arg, flag: &str, found: &Found) -> Result<Vec<OsString>, Exit> {
    let switch = |wanted: bool| {
        let mut words = Vec::new();
        for value in &found.values {
            if parse_switch(value).map_err(|accepted| refused(flag, value, &found.origin, accepted))? == wanted {
                words.push(OsString::from(format!("--{flag}")));
            }
        }
        Ok(words)
    };
    match arg.get_action() {
        ArgAction::SetTrue => switch(true),
        ArgAction::SetFalse => switch(false),
        ArgAction::Count => {
            let value = &found.values[0];
            let count = value.to_str().and_then(|text| text.parse::<u8>().ok());
            let count = count.ok_or_else(|| refused(flag, value, &found.origin, "a number from 0 to 255"))?;
            Ok((0..count).map(|_| format!("--{flag}").into()).collect())
        }
        _ => Ok(found
            .values
            .iter()
            .map(|value| {
                let mut word = OsString::from(format!("--{flag}="));
                word.push(value);
                word
            })
            .collect()),
    }
}

fn parse_switch(value: &OsStr) -> Result<bool, &'static str> {
    match value.to_str().map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "1" | "yes" | "on") => Ok(true),
        Some("false" | "0" | "no" | "off" | "") => Ok(false),
        _ => Err("true or false"),
    }
}

fn refused(flag: &str, value: &OsStr, origin: &str, accepted: &str) -> Exit {
    let value = value.to_string_lossy();
    Exit::usage(format!(
        "invalid value '{value}' for '--{flag}', which takes {accepted}\n\n  the value came from {origin}"
    ))
}

/// Tells where a refused value came from, and what the setting is.
fn explain(mut error: clap::Error, injected: &[Injected]) -> clap::Error {
    let named: Vec<String> = error
        .context()
        .filter(|(kind, _)| matches!(kind, ContextKind::InvalidArg | ContextKind::PriorArg))
        .flat_map(|(_, value)| match value {
            ContextValue::String(text) => vec![text.clone()],
            ContextValue::Strings(texts) => texts.clone(),
            _ => Vec::new(),
        })
        .collect();
    let mut tips: Vec<StyledStr> = Vec::new();
    for name in named {
        let flag = name.split([' ', '=']).next().unwrap_or_default();
        if let Some(found) = injected.iter().find(|i| i.flag == flag) {
            tips.push(format!("the value of {flag} came from {}", found.origin).into());
            if !found.help.is_empty() {
                tips.push(format!("{flag}: {}", found.help).into());
            }
        }
    }
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}
