//! The help of every command: it has examples, and each of them is a command line that is understood.

use clap::{Command, CommandFactory, Parser};

use super::Cli;

/// Every command that is shown, with its words.
fn commands(command: &Command, words: &str) -> Vec<(String, Command)> {
    let mut all = vec![(words.to_owned(), command.clone())];
    for below in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        all.extend(commands(below, &format!("{words} {}", below.get_name())));
    }
    all
}

/// The lines below `Examples:`.
fn examples(command: &Command) -> Vec<String> {
    let end = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let Some((_, below)) = end.split_once("Examples:\n") else { return Vec::new() };
    below.lines().take_while(|line| !line.is_empty()).map(|line| line.trim().to_owned()).collect()
}

/// The words of the `dvs` in a line of a shell, without what is said about it further to the right.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.split("   ").next().unwrap_or_default();
    let line = line.split(['|', '>']).map(str::trim).find(|part| part.starts_with("dvs "))?;
    let mut words: Vec<String> = Vec::new();
    // Every second piece between single quotes is one word.
    for (at, piece) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            words.push(piece.to_owned());
        } else {
            words.extend(piece.split_whitespace().map(str::to_owned));
        }
    }
    Some(words)
}

#[test]
fn every_command_ends_its_help_with_examples_of_itself_that_are_understood() {
    let all = commands(&Cli::command(), "dvs");
    assert!(all.len() > 20, "{} commands", all.len());
    for (name, command) in all {
        let lines = examples(&command);
        let about_it = lines.iter().filter(|line| line.contains(&name)).count();
        assert!(about_it > 0, "the help of `{name}` has no example of it: {lines:?}");
        for line in lines.iter().filter(|line| !line.starts_with("man ")) {
            let words = words(line).unwrap_or_else(|| panic!("no `dvs` in {line:?} of `{name}`"));
            if let Err(why) = Cli::try_parse_from(&words) {
                panic!("`{line}`, an example of `{name}`, is not understood: {why}");
            }
        }
    }
}

#[test]
fn the_definition_of_the_commands_is_sound() {
    Cli::command().debug_assert();
}
