package image

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT], or an architecture alone, which
// is that of Linux. Names that uname prints are understood.
func ParsePlatform(s string) (v1.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) == 1 {
		parts = []string{"linux", s}
	}
	if len(parts) > 3 || slices.Contains(parts, "") || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return v1.Platform{}, fmt.Errorf("platform %.100q: want OS/ARCHITECTURE[/VARIANT], as in linux/amd64 or linux/arm/v7", s)
	}
	p := v1.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return normalPlatform(p), nil
}

// FormatPlatform writes a platform as ParsePlatform reads it; an unknown one is
// "unknown".
func FormatPlatform(p v1.Platform) string {
	if p.OS == "" && p.Architecture == "" {
		return "unknown"
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// normalPlatform brings the spellings of a platform to one.
func normalPlatform(p v1.Platform) v1.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "i386", "i686":
		p.Architecture = "386"
	}
	if p.Architecture == "arm64" && p.Variant == "v8" || p.Architecture == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

// wanted reports whether an image for platform p is asked for. What an image
// does not say about itself excludes it from nothing.
func (o *Options) wanted(p v1.Platform) bool {
	if len(o.Platforms) == 0 || p.OS == "" && p.Architecture == "" {
		return true
	}
	p = normalPlatform(p)
	return slices.ContainsFunc(o.Platforms, func(want v1.Platform) bool {
		// The variant of a normal form is lost, so ask for what was written.
		anyVariant := want.Variant == ""
		want = normalPlatform(want)
		return want.OS == p.OS && want.Architecture == p.Architecture &&
			(anyVariant && want.Variant == "" || want.Variant == p.Variant) &&
			(want.OSVersion == "" || want.OSVersion == p.OSVersion)
	})
}
