package netlab

import (
	"fmt"
	"strconv"
	"strings"
)

// Rate is the capacity of a link in bits per second; 0 means unshaped.
type Rate int64

// ParseRate reads a rate as tc(8) spells it: a number and one of bit, kbit,
// mbit and gbit (powers of 1000), in any case; "none" is unshaped.
func ParseRate(s string) (Rate, error) {
	if s == "none" {
		return 0, nil
	}
	lower := strings.ToLower(s)
	for _, unit := range []struct {
		suffix string
		bits   float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}} {
		number, ok := strings.CutSuffix(lower, unit.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || !(n*unit.bits >= 1e3) || n*unit.bits > 1e12 {
			break
		}
		return Rate(n * unit.bits), nil
	}
	return 0, fmt.Errorf("rate %q: want a number with kbit, mbit or gbit between 1kbit and 1000gbit, or none", s)
}

// String returns the form that ParseRate and tc(8) read.
func (r Rate) String() string {
	switch {
	case r == 0:
		return "none"
	case r%1e9 == 0:
		return strconv.FormatInt(int64(r/1e9), 10) + "gbit"
	case r%1e6 == 0:
		return strconv.FormatInt(int64(r/1e6), 10) + "mbit"
	}
	return strconv.FormatInt(int64(r), 10) + "bit"
}

// Set reads a rate, as package flag's Value.
func (r *Rate) Set(s string) error {
	parsed, err := ParseRate(s)
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}

// Seconds returns how long the link takes for the given number of bytes; 0 if
// it is unshaped.
func (r Rate) Seconds(bytes int64) float64 {
	if r == 0 {
		return 0
	}
	return float64(bytes) * 8 / float64(r)
}
