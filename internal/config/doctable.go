package config

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Markdown returns the reference table of a configuration struct or pointer to
// one, a row per key in the order of the fields. It panics on a struct that
// Bind refuses.
func Markdown(dst any) string {
	var b strings.Builder
	b.WriteString("| Key | Flag | Default | Unit | Meaning |\n|---|---|---|---|---|\n")
	for _, f := range freshFields(dst) {
		meaning := f.help
		if f.env != "" {
			meaning += " Environment: `" + f.env + "`."
		}
		fmt.Fprintf(&b, "| `%s` | `--%s` | %s | %s | %s |\n",
			f.key, f.key, codeCell(f.deflt), cell(f.unitText()), cell(meaning))
	}
	return b.String()
}

// Example returns a YAML file that sets every key of a configuration struct or
// pointer to one to its default, each under a comment that explains it. It
// panics on a struct that Bind refuses.
func Example(dst any) string {
	var b strings.Builder
	for i, f := range freshFields(dst) {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "# %s\n", strings.ReplaceAll(f.help, "\n", "\n# "))
		if unit := f.unitText(); unit != "" {
			fmt.Fprintf(&b, "# Unit: %s\n", unit)
		}
		fmt.Fprintf(&b, "%s: %s\n", f.key, f.yamlDefault())
	}
	return b.String()
}

// freshFields lists the keys of a new struct of dst's type, so that describing
// a configuration does not reset it.
func freshFields(dst any) []*field {
	t := reflect.TypeOf(dst)
	if t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %T is no configuration struct", dst))
	}
	fields, err := fieldsOf(reflect.New(t).Interface())
	if err != nil {
		panic("config: " + err.Error())
	}
	return fields
}

// unitText is the declared unit, or what the type implies.
func (f *field) unitText() string {
	switch {
	case f.unit != "":
		return f.unit
	case f.kind.name == "size":
		return "bytes"
	case f.kind.name == "rate":
		return "bytes per second"
	case f.kind.name == "duration":
		return "duration"
	}
	return ""
}

func (f *field) yamlDefault() string {
	v := f.value.Interface()
	switch x := v.(type) {
	case []string:
		if len(x) == 0 {
			return "[]"
		}
		return "[" + strings.Join(mapped(x, quoteYAML), ", ") + "]"
	case string:
		return quoteYAML(x)
	}
	return fmt.Sprint(v)
}

// quoteYAML always quotes, so that text such as "no" or "[::]:80" needs no
// second thought.
func quoteYAML(s string) string {
	out, err := yaml.Marshal(&yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle})
	if err != nil {
		panic("config: quote default: " + err.Error())
	}
	return strings.TrimSuffix(string(out), "\n")
}

func mapped(in []string, f func(string) string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = f(s)
	}
	return out
}

func codeCell(s string) string {
	if s == "" {
		return ""
	}
	return "`" + cell(s) + "`"
}

func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(s)
}
