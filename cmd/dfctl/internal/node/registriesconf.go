package node

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// registriesText is the drop-in for CRI-O and Podman. They name no upstream in
// the request, so the registry is part of the mirror's location.
func registriesText(mirror string, registries []string) string {
	var b strings.Builder
	b.WriteString(beginMark)
	for i, reg := range registries {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "[[registry]]\nprefix = %q\nlocation = %q\n\n", reg, reg)
		fmt.Fprintf(&b, "[[registry.mirror]]\nlocation = %q\ninsecure = true\n", mirror+"/"+reg)
	}
	b.WriteString(endMark)
	return b.String()
}

// definedRegistries lists the prefixes that a registries.conf defines, in the
// current format and in the older one with [registries.…] lists.
func definedRegistries(src []byte) ([]string, error) {
	doc, err := decodeTOML(src)
	if err != nil {
		return nil, err
	}
	var out []string
	list, _ := doc["registry"].([]any)
	for _, v := range list {
		reg, _ := v.(map[string]any)
		prefix, _ := reg["prefix"].(string)
		if prefix == "" {
			prefix, _ = reg["location"].(string)
		}
		out = append(out, prefix)
	}
	for _, kind := range []string{"insecure", "block"} {
		names, _ := lookup(doc, "registries", kind, "registries").([]any)
		for _, v := range names {
			if s, ok := v.(string); ok {
				out = append(out, s)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// cutRegistries takes our text out of a drop-in edited since setup.
func cutRegistries(cur []byte, block string) ([]byte, error) {
	out, err := cutBlock(cur, block, "")
	if err != nil {
		return nil, err
	}
	was, err := decodeTOML(cur)
	if err != nil {
		return nil, err
	}
	ours, err := decodeTOML([]byte(block))
	if err != nil {
		return nil, err
	}
	is, err := decodeTOML(out)
	if err != nil {
		return nil, errNotOurs
	}
	// A key appended below our last section belongs to that section, which
	// then equals none of ours.
	all, _ := was["registry"].([]any)
	mine, _ := ours["registry"].([]any)
	rest := slices.DeleteFunc(slices.Clone(all), func(v any) bool {
		return slices.ContainsFunc(mine, func(m any) bool { return reflect.DeepEqual(v, m) })
	})
	left, _ := is["registry"].([]any)
	if len(rest) != len(all)-len(mine) || len(rest) != len(left) || (len(left) > 0 && !reflect.DeepEqual(rest, left)) {
		return nil, errNotOurs
	}
	delete(was, "registry")
	delete(is, "registry")
	if !reflect.DeepEqual(was, is) {
		return nil, errNotOurs
	}
	return out, nil
}
