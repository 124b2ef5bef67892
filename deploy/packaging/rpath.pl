#!/usr/bin/perl
# Makes a program's DT_RUNPATH a DT_RPATH, in place: the loader then looks in $ORIGIN/lib for the libraries' own needs
# too, so that a folder of unchanged libraries can be carried anywhere. Little-endian ELF64 only, anything else is refused.
use strict;
use warnings;

my ($DT_RPATH, $DT_RUNPATH, $SHT_DYNAMIC) = (15, 29, 6);
@ARGV == 1 or die "usage: rpath.pl PROGRAM\n";
open(my $file, '+<:raw', $ARGV[0]) or die "$ARGV[0]: $!\n";
sub at { my ($offset, $size) = @_; my $got; seek($file, $offset, 0); read($file, $got, $size) == $size or die "$ARGV[0] is cut short\n"; return $got }
my $header = at(0, 64);
substr($header, 0, 6) eq "\x7fELF\x02\x01" or die "$ARGV[0] is not a little-endian ELF64 file\n";
my $sections = unpack('Q<', substr($header, 40, 8));
my ($size, $count) = unpack('v v', substr($header, 58, 4));
my $changed = 0;
for my $i (0 .. $count - 1) {
  my $section = at($sections + $i * $size, 64);
  next if unpack('V', substr($section, 4, 4)) != $SHT_DYNAMIC;
  my ($offset, $length) = unpack('Q< Q<', substr($section, 24, 16));
  for (my $entry = $offset; $entry + 16 <= $offset + $length; $entry += 16) {
    my $tag = unpack('Q<', at($entry, 8));
    $changed = 1 if $tag == $DT_RPATH;
    next if $tag != $DT_RUNPATH;
    seek($file, $entry, 0);
    print {$file} pack('Q<', $DT_RPATH) or die "$ARGV[0]: $!\n";
    $changed = 1;
  }
}
$changed or die "$ARGV[0] has no run path\n";
close($file) or die "$ARGV[0]: $!\n";
