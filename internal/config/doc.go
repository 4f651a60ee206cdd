// Package config makes one Go struct the only description of a daemon's
// configuration: its flags, its YAML file, the environment variables it
// honours and its reference table all come from the struct's tags.
//
// Every field with a config tag is one key. A key has one flat kebab-case
// name, the same in the file (`log-level: debug`) and on the command line
// (`--log-level debug`). Tags:
//
//	config:"key"      the name; "-" leaves the field out
//	default:"text"    the value when nothing else sets it, as a user would write it
//	unit:"bytes"      unit of a bare number, for help and documentation
//	help:"sentence"   what the key means
//	env:"DAMSELFLY_X" an environment variable that sets the key as well
//	oneof:"a,b"       the only accepted values of a string or list entry
//
// Embedded structs without a config tag contribute their keys as they are; a
// struct field with a tag puts that tag and "-" before its keys. Field types
// are string, bool, int, int64, float64, time.Duration, Size, Rate and
// []string. A list is a YAML list in a file; as a flag it may be repeated, and
// commas separate entries in flags, environment and defaults.
//
// A flag wins over the environment, the environment over the file, the file
// over the default. Nothing is guessed: an unknown or repeated key, a value of
// another type, or a second YAML document is an error with file and line, and
// a value in the file is checked even where a flag overrides it.
//
// The package keeps no state of its own and never logs. A Binding is not safe
// for concurrent use and does not watch the file.
package config
