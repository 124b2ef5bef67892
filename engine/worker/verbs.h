// The worker's command line, verb by verb: JSON lines in on stdin, JSON lines out on stdout in the same order, logs on
// stderr. A line at fault gives {"error": ...} and the next is read; an error of the whole run goes to stderr with exit
// code 1.
#pragma once

#include <memory>
#include <vector>

#include "CLI/CLI.hpp"

namespace hone {

// Adds all verbs to `app`. After parsing, *exit_code is set by the verb that ran.
void AddTextVerbs(CLI::App& app, int* exit_code);   // inspect, tokenize, render
void AddModelVerbs(CLI::App& app, int* exit_code);  // score, generate, export
void AddJobVerbs(CLI::App& app, int* exit_code);    // validate, plan, train, serve

}  // namespace hone
