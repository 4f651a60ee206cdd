package config

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind says how values of one Go type are read and named.
type kind struct {
	name  string // as shown in flag help
	parse func(string) (any, error)
}

// kindOf returns the kind of a supported field type. Named types other than
// those of this package and time.Duration are refused, so that a type with a
// meaning of its own is not silently read as a bare number.
func kindOf(t reflect.Type) (kind, bool) {
	switch reflect.Zero(t).Interface().(type) {
	case string:
		return kind{"string", func(s string) (any, error) { return s, nil }}, true
	case bool:
		return kind{"bool", parseBool}, true
	case int:
		return kind{"int", parseInt}, true
	case int64:
		return kind{"int", parseInt64}, true
	case float64:
		return kind{"number", parseFloat}, true
	case time.Duration:
		return kind{"duration", parseDuration}, true
	case Size:
		return kind{"size", func(s string) (any, error) { return ParseSize(s) }}, true
	case Rate:
		return kind{"rate", func(s string) (any, error) { return ParseRate(s) }}, true
	case []string:
		return kind{"list", func(s string) (any, error) { return splitList(s), nil }}, true
	}
	return kind{}, false
}

func parseBool(s string) (any, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return nil, fmt.Errorf("%q: want true or false", clip(s))
}

func parseInt(s string) (any, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return nil, fmt.Errorf("%q: want a whole number", clip(s))
	}
	return n, nil
}

func parseInt64(s string) (any, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%q: want a whole number", clip(s))
	}
	return n, nil
}

func parseFloat(s string) (any, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, fmt.Errorf("%q: want a number", clip(s))
	}
	return f, nil
}

func parseDuration(s string) (any, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return nil, fmt.Errorf("%q: want a duration such as 500ms, 30s or 2h", clip(s))
	}
	return d, nil
}

// splitList cuts at commas and drops surrounding blanks and empty entries.
func splitList(s string) []string {
	var list []string
	for entry := range strings.SplitSeq(s, ",") {
		if entry = strings.TrimSpace(entry); entry != "" {
			list = append(list, entry)
		}
	}
	return list
}

// field is one key of a configuration struct.
type field struct {
	key, help, unit, env string
	deflt                string
	oneOf                []string
	kind                 kind
	value                reflect.Value // the struct field itself
}

// parse reads text and checks it against the accepted values.
func (f *field) parse(text string) (any, error) {
	v, err := f.kind.parse(text)
	if err != nil {
		return nil, err
	}
	return v, f.check(v)
}

func (f *field) check(v any) error {
	if f.oneOf == nil {
		return nil
	}
	entries, isList := v.([]string)
	if !isList {
		entries = []string{fmt.Sprint(v)}
	}
	for _, entry := range entries {
		if !slices.Contains(f.oneOf, entry) {
			return fmt.Errorf("%q is not accepted: want %s", clip(entry), strings.Join(f.oneOf, " or "))
		}
	}
	return nil
}

func (f *field) set(v any) { f.value.Set(reflect.ValueOf(v)) }

func (f *field) isList() bool { return f.kind.name == "list" }

// flagValue makes a field a pflag.Value.
type flagValue struct {
	*field
	given bool
}

// Set reads one occurrence of the flag. The first occurrence of a list
// replaces the default, further ones add to it.
func (f *flagValue) Set(text string) error {
	v, err := f.parse(text)
	if err != nil {
		return err
	}
	if list, ok := v.([]string); ok && f.given {
		earlier, _ := f.value.Interface().([]string) // of the same type as v
		v = append(slices.Clone(earlier), list...)
	}
	f.set(v)
	f.given = true
	return nil
}

// Type names the kind of value in help texts.
func (f *flagValue) Type() string { return f.kind.name }

// String returns the current value as Set would read it.
func (f *flagValue) String() string {
	// pflag asks the zero value of a flag's type for its text.
	if f.field == nil {
		return ""
	}
	if list, ok := f.value.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(f.value.Interface())
}

// IsBoolFlag lets a boolean flag stand without a value.
func (f *flagValue) IsBoolFlag() bool { return f.kind.name == "bool" }
