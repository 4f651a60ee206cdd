package node

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// The CRI plugin's registry section by containerd's configuration version:
// 1 (no version line), 2 (containerd 1.x) and 3 (containerd 2.x).
var (
	registryV1 = []string{"plugins", "cri", "registry"}
	registryV2 = []string{"plugins", "io.containerd.grpc.v1.cri", "registry"}
	registryV3 = []string{"plugins", "io.containerd.cri.v1.images", "registry"}
)

// criConfig is what a containerd config.toml says about registries.
type criConfig struct {
	section    []string // path of the registry section in this file's version
	configPath string
	// legacy is the setting that excludes config_path, as containerd would
	// name it; empty when there is none.
	legacy   string
	disabled bool // the CRI plugin is switched off
	imports  []string
}

// parseCRIConfig reads src; an empty one is a config of the given version.
func parseCRIConfig(src []byte, defaultVersion int64) (criConfig, error) {
	doc, err := decodeTOML(src)
	if err != nil {
		return criConfig{}, err
	}
	version, ok := doc["version"].(int64)
	if !ok {
		version = 1
		if isBlank(src) {
			version = defaultVersion
		}
	}
	c := criConfig{section: registryV2}
	switch {
	case version <= 1:
		c.section = registryV1
	case version >= 3:
		c.section = registryV3
	}
	reg, ok := lookup(doc, c.section...).(map[string]any)
	if ok {
		c.configPath, _ = reg["config_path"].(string)
		c.legacy = legacyRegistry(reg)
	}
	c.disabled = criDisabled(doc)
	imports, _ := doc["imports"].([]any)
	for _, v := range imports {
		if s, ok := v.(string); ok {
			c.imports = append(c.imports, s)
		}
	}
	return c, nil
}

// legacyRegistry names the first setting in a registry section with which
// containerd refuses config_path. Credentials under configs are accepted.
func legacyRegistry(reg map[string]any) string {
	if m, ok := reg["mirrors"].(map[string]any); ok && len(m) > 0 {
		return "mirrors"
	}
	configs, _ := reg["configs"].(map[string]any)
	for host, v := range configs {
		if c, ok := v.(map[string]any); ok && c["tls"] != nil {
			return fmt.Sprintf("configs.%q.tls", host)
		}
	}
	return ""
}

func criDisabled(doc map[string]any) bool {
	list, _ := doc["disabled_plugins"].([]any)
	for _, v := range list {
		switch v {
		case "cri", "io.containerd.grpc.v1.cri":
			return true
		}
	}
	return false
}

// sectionHeader is a section's path as TOML writes it.
func sectionHeader(path []string) string {
	quoted := make([]string, len(path))
	for i, key := range path {
		quoted[i] = key
		if strings.ContainsAny(key, ".") {
			quoted[i] = strconv.Quote(key)
		}
	}
	return "[" + strings.Join(quoted, ".") + "]"
}

// configPathSnippet is what an operator has to add to config.toml.
func configPathSnippet(section []string, dir string) string {
	return fmt.Sprintf("%s\n  config_path = %q\n", sectionHeader(section), dir)
}

// setConfigPath sets config_path in src and reports the text it replaced and
// the text it put there.
func setConfigPath(src []byte, section []string, dir string) (out []byte, removed, added string, err error) {
	items, err := tomlItems(src)
	if err != nil {
		return nil, "", "", err
	}
	start, end, added := placeConfigPath(src, items, section, dir)
	removed = string(src[start:end])
	out = splice(src, start, end, added)
	same, err := sameTOML(src, out, append(section[:len(section):len(section)], "config_path")...)
	if err != nil || !same {
		return nil, "", "", errors.Join(errors.New("config_path cannot be set without changing something else"), err)
	}
	doc, err := decodeTOML(out)
	if err != nil {
		return nil, "", "", err
	}
	if got := lookup(doc, append(section[:len(section):len(section)], "config_path")...); got != dir {
		return nil, "", "", fmt.Errorf("config_path would read as %v", got)
	}
	return out, removed, added, nil
}

// placeConfigPath decides which bytes of src give way to which text: the line
// that sets config_path, the line below the section's header, or the end.
func placeConfigPath(src []byte, items []tomlItem, section []string, dir string) (start, end int, text string) {
	key := append(section[:len(section):len(section)], "config_path")
	header := -1
	for i, it := range items {
		switch {
		case !it.isTable() && equalPath(it.path, key) && it.valueEnd > 0:
			line := string(src[it.start:it.valueStart]) + strconv.Quote(dir) + string(src[it.valueEnd:it.end])
			return it.start, it.end, line
		case it.kind == unstable.Table && equalPath(it.path, section):
			header = i
		}
	}
	if header < 0 {
		text = "\n" + beginMark + configPathSnippet(section, dir) + endMark
		if len(src) > 0 && src[len(src)-1] != '\n' {
			text = "\n" + text
		}
		if isBlank(src) {
			text = strings.TrimPrefix(text, "\n")
		}
		return len(src), len(src), text
	}
	at := items[header].end
	line := src[items[header].start:at]
	indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
	text = fmt.Sprintf("%s  config_path = %q # damselfly\n", indent, dir)
	if len(line) > 0 && line[len(line)-1] != '\n' {
		text = "\n" + text
	}
	return at, at, text
}

func equalPath(a, b []string) bool {
	return strings.Join(a, "\x00") == strings.Join(b, "\x00")
}

// cutConfigPath puts back what setConfigPath replaced in a file edited since.
func cutConfigPath(cur []byte, section []string, removed, added string) ([]byte, error) {
	out, err := cutBlock(cur, added, removed)
	if err != nil {
		return nil, err
	}
	same, err := sameTOML(cur, out, append(section[:len(section):len(section)], "config_path")...)
	if err != nil {
		return nil, err
	}
	if !same {
		return nil, errNotOurs
	}
	return out, nil
}
