# Turns what a program prints for --help into the body of a man page: awk -v level=SH|SS -f manpage.awk.
# level SH: a whole page's sections; level SS: the help of a subcommand, as paragraphs beneath a heading of its own.
# Knows the layout that CLI11 and our footers have, nothing else: "Title:" starts a section, two blanks an entry.
function escape(text) {
  gsub(/\\/, "\\e", text)
  gsub(/-/, "\\-", text)
  gsub(/`/, "\\(ga", text)
  if (text ~ /^[.']/) text = "\\&" text
  return text
}
function heading(title) {
  close_verbatim()
  print (level == "SH" ? ".SH " toupper(title) : ".PP\n.I " title ":")
}
function close_verbatim() {
  if (verbatim) print ".fi\n.RE"
  verbatim = 0
}
function open_verbatim() {
  if (!verbatim) print ".RS 4\n.nf"
  verbatim = 1
}
/^Usage: / {
  heading("Synopsis")
  if (level == "SS") print ".br"
  sub(/^Usage: /, "")
  print ".B " escape($0)
  section = "usage"
  next
}
/^[A-Z][A-Za-z ]*:$/ {
  sub(/:$/, "")
  heading($0)
  section = ($0 == "Options" || $0 == "Positionals" || $0 == "Subcommands") ? "entries" : "verbatim"
  if (section == "verbatim") open_verbatim()
  next
}
/^[ \t]*$/ {
  if (section == "verbatim") { close_verbatim(); section = "text" }
  else if (section != "") section = section == "entries" ? "entries" : "text"
  if (started) print ".PP"
  next
}
section == "entries" && /^  [^ ]/ {
  rest = substr($0, 3)
  at = match(rest, /  +/)
  print ".TP\n.B " escape(at ? substr(rest, 1, at - 1) : rest)
  if (at) print escape(substr(rest, at + RLENGTH))
  next
}
section == "verbatim" { print escape($0); next }
{
  if (section == "" && !started && level == "SH") print ".SH DESCRIPTION"
  started = 1
  sub(/^ +/, "")
  print escape($0)
}
END { close_verbatim() }
