package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"

	"github.com/spf13/pflag"
)

// FileFlag is the name of the flag that names the configuration file. It is
// not a key: a file cannot include another.
const FileFlag = "config"

// Log is the part of a configuration that every daemon shares. Embed it.
type Log struct {
	Level  string `config:"log-level" default:"info" oneof:"debug,info,warn,error" help:"Least severe level that is logged: debug, info, warn or error."`
	Format string `config:"log-format" default:"text" oneof:"text,json" help:"Form of log lines: text or json."`
}

// Binding connects a configuration struct with a flag set.
type Binding struct {
	dst    any
	flags  *pflag.FlagSet
	fields []*field
	byKey  map[string]*field
}

// Bind sets dst, a pointer to a struct, to its defaults and registers a flag
// for each of its keys, and --config unless the set has one already. It fails
// on a struct that breaks the package's rules or whose flags exist already;
// that is a mistake in the program, never of its user.
func Bind(flags *pflag.FlagSet, dst any) (*Binding, error) {
	fields, err := fieldsOf(dst)
	if err != nil {
		return nil, err
	}
	b := &Binding{dst: dst, flags: flags, fields: fields, byKey: make(map[string]*field, len(fields))}
	for _, f := range fields {
		if flags.Lookup(f.key) != nil {
			return nil, fmt.Errorf("bind configuration: flag --%s exists already", f.key)
		}
		b.byKey[f.key] = f
		flag := flags.VarPF(&flagValue{field: f}, f.key, "", f.usage())
		if f.kind.name == "bool" {
			flag.NoOptDefVal = "true"
		}
	}
	if flags.Lookup(FileFlag) == nil {
		flags.String(FileFlag, "", "Read settings from this YAML `FILE`; flags override it.")
	}
	return b, nil
}

// File returns the value of the --config flag, empty without one.
func (b *Binding) File() string {
	if f := b.flags.Lookup(FileFlag); f != nil {
		return f.Value.String()
	}
	return ""
}

// Load completes the struct after the flags were parsed: keys without a flag
// are set from their environment variable or from the YAML file; an empty file
// name means no file. Then it calls the struct's Validate() error, if it has
// one. The error names every bad key with its place, value and what is
// accepted. Call Load once.
func (b *Binding) Load(file string) error {
	fromFile := map[*field]any{}
	if file != "" {
		data, err := os.ReadFile(file) // #nosec G304 -- the operator names the file
		if err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
		if fromFile, err = b.parseYAML(file, data); err != nil {
			return err
		}
	}
	var errs []error
	for _, f := range b.fields {
		if err := b.apply(f, fromFile); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if v, ok := b.dst.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

// apply sets f from the strongest source that has a value for it. A flag has
// already written its value.
func (b *Binding) apply(f *field, fromFile map[*field]any) error {
	if b.flags.Changed(f.key) {
		return nil
	}
	if f.env != "" {
		// An empty variable counts as unset: that is how a container manifest
		// or a shell takes a variable back.
		if text := os.Getenv(f.env); text != "" {
			v, err := f.parse(text)
			if err != nil {
				return fmt.Errorf("environment variable %s (key %s): %w", f.env, f.key, err)
			}
			f.set(v)
			return nil
		}
	}
	if v, ok := fromFile[f]; ok {
		f.set(v)
	}
	return nil
}

func (f *field) usage() string {
	s := f.help
	if f.env != "" {
		s += " Environment: " + f.env + "."
	}
	if f.unit != "" {
		s += " [" + f.unit + "]"
	}
	return s
}

// fieldsOf lists the keys of the struct behind dst and sets them to their
// defaults.
func fieldsOf(dst any) ([]*field, error) {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("bind configuration: want a pointer to a struct, got %T", dst)
	}
	fields, err := walk(v.Elem(), "")
	if err != nil {
		return nil, fmt.Errorf("bind configuration %T: %w", dst, err)
	}
	seen := map[string]bool{FileFlag: true}
	for _, f := range fields {
		if seen[f.key] {
			return nil, fmt.Errorf("bind configuration %T: key %q is taken", dst, f.key)
		}
		seen[f.key] = true
	}
	return fields, nil
}

func walk(v reflect.Value, prefix string) ([]*field, error) {
	var fields []*field
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		tag, tagged := sf.Tag.Lookup("config")
		_, isScalar := kindOf(sf.Type)
		switch {
		case tag == "-" || !sf.IsExported() && !sf.Anonymous:
			continue
		case sf.Type.Kind() == reflect.Struct && !isScalar && (tagged || sf.Anonymous):
			sub := prefix
			if tagged {
				sub += tag + "-"
			}
			nested, err := walk(v.Field(i), sub)
			if err != nil {
				return nil, err
			}
			fields = append(fields, nested...)
		default:
			f, err := newField(sf, v.Field(i), prefix)
			if err != nil {
				return nil, fmt.Errorf("field %s: %w", sf.Name, err)
			}
			fields = append(fields, f)
		}
	}
	return fields, nil
}

var keyForm = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

func newField(sf reflect.StructField, v reflect.Value, prefix string) (*field, error) {
	k, ok := kindOf(sf.Type)
	if !ok {
		return nil, fmt.Errorf("type %s is not supported", sf.Type)
	}
	f := &field{
		key:   prefix + sf.Tag.Get("config"),
		help:  sf.Tag.Get("help"),
		unit:  sf.Tag.Get("unit"),
		env:   sf.Tag.Get("env"),
		deflt: sf.Tag.Get("default"),
		oneOf: splitList(sf.Tag.Get("oneof")),
		kind:  k,
		value: v,
	}
	switch {
	case !keyForm.MatchString(f.key):
		return nil, fmt.Errorf("key %q is not kebab-case; use config:\"-\" to leave a field out", f.key)
	case f.help == "":
		return nil, fmt.Errorf("key %s has no help", f.key)
	}
	if f.deflt == "" {
		v.SetZero()
		return f, nil
	}
	def, err := f.parse(f.deflt)
	if err != nil {
		return nil, fmt.Errorf("default of key %s: %w", f.key, err)
	}
	f.set(def)
	return f, nil
}
