package config

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Size is a number of bytes. It is never negative when it comes from
// ParseSize.
type Size int64

// Rate is a number of bytes per second. What zero means (commonly: no limit)
// is up to the key.
type Rate int64

// unit is a suffix and the number of bytes it stands for; a bit unit counts
// an eighth of that.
type unit struct {
	name  string
	bytes int64
	bits  bool
}

// Suffixes are case-sensitive because "Mb" is read as bits by some and as
// bytes by others. The exact binary ones come first so that format prefers
// them.
var sizeUnits = []unit{
	{"PiB", 1 << 50, false}, {"TiB", 1 << 40, false}, {"GiB", 1 << 30, false}, {"MiB", 1 << 20, false}, {"KiB", 1 << 10, false},
	{"PB", 1e15, false}, {"TB", 1e12, false}, {"GB", 1e9, false}, {"MB", 1e6, false}, {"kB", 1e3, false}, {"KB", 1e3, false},
	{"B", 1, false},
}

var bitUnits = []unit{
	{"Tbit", 1e12, true}, {"Gbit", 1e9, true}, {"Mbit", 1e6, true}, {"kbit", 1e3, true}, {"bit", 1, true},
}

const (
	wantSize = "want a size such as 512MiB, 1.5GiB, 100kB or plain bytes"
	wantRate = "want a rate such as 200Mbit, 10MiB (per second) or plain bytes per second"
)

// ParseSize reads a size: digits, optionally with a decimal fraction, and a
// unit of B, kB, MB, GB, TB, PB (powers of 1000) or KiB, MiB, GiB, TiB, PiB
// (powers of 1024). Without a unit the number counts bytes. The result must be
// a whole number of bytes that fits an int64.
func ParseSize(s string) (Size, error) {
	n, err := parseQuantity(s, sizeUnits)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, wantSize)
	}
	return Size(n), nil
}

// ParseRate reads a rate: what ParseSize accepts, per second, or a number of
// bit, kbit, Mbit, Gbit or Tbit (powers of 1000), either with an optional
// "/s". Without a unit the number counts bytes per second.
func ParseRate(s string) (Rate, error) {
	n, err := parseQuantity(strings.TrimSuffix(s, "/s"), append(bitUnits[:len(bitUnits):len(bitUnits)], sizeUnits...))
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, wantRate)
	}
	return Rate(n), nil
}

// String returns the shortest exact form that ParseSize reads back.
func (s Size) String() string { return format(int64(s)) }

// String returns the shortest exact form in bytes that ParseRate reads back.
func (r Rate) String() string {
	if r == 0 {
		return "0"
	}
	return format(int64(r)) + "/s"
}

func format(n int64) string {
	for _, u := range sizeUnits {
		if n != 0 && u.bytes > 1 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

func parseQuantity(s string, units []unit) (int64, error) {
	number := strings.TrimLeft(s, "0123456789.")
	number, suffix := s[:len(s)-len(number)], strings.TrimPrefix(number, " ")
	scale := big.NewRat(1, 1)
	if suffix != "" {
		u, ok := findUnit(suffix, units)
		if !ok {
			return 0, fmt.Errorf("unknown unit in %q", clip(s))
		}
		scale.SetInt64(u.bytes)
		if u.bits {
			scale.Quo(scale, big.NewRat(8, 1))
		}
	}
	if !isDecimal(number) {
		return 0, fmt.Errorf("no number in %q", clip(s))
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("no number in %q", clip(s))
	}
	value.Mul(value, scale)
	switch {
	case !value.IsInt():
		return 0, fmt.Errorf("%q is not a whole number of bytes", clip(s))
	case !value.Num().IsInt64():
		return 0, fmt.Errorf("%q is too large", clip(s))
	}
	return value.Num().Int64(), nil
}

func findUnit(name string, units []unit) (unit, bool) {
	for _, u := range units {
		if u.name == name {
			return u, true
		}
	}
	return unit{}, false
}

// isDecimal accepts digits with at most one point between them, and bounds
// their number so that the exact arithmetic stays small.
func isDecimal(s string) bool {
	const maxDigits = 32
	whole, fraction, point := strings.Cut(s, ".")
	if whole == "" || point && fraction == "" || len(s) > maxDigits {
		return false
	}
	return !strings.Contains(fraction, ".")
}

// clip keeps a pasted file from filling an error message.
func clip(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}
