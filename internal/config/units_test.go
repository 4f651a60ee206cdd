package config_test

import (
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/config"
)

func TestParseSize(t *testing.T) {
	good := map[string]config.Size{
		"0": 0, "1": 1, "17B": 17, "100kB": 100_000, "100KB": 100_000, "1GB": 1e9, "512MiB": 512 << 20, "1.5GiB": 3 << 29,
		"2 TiB": 2 << 40, "7PiB": 7 << 50, "3PB": 3e15, "0.001kB": 1, "9223372036854775807": 1<<63 - 1,
	}
	for in, want := range good {
		if got, err := config.ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	bad := []string{
		"", " ", "-1", "+1", "1e3", "1_000", "0x10", ".5GiB", "5.GiB", "1.2.3", "MiB", "1 0", "1  MiB", "1mib", "1Mb", "1M",
		"10Mbit", "1MiB/s", "0.3B", "0.1KiB", "9223372036854775808", "8192PiB", strings.Repeat("1", 10_000), "٣MiB",
	}
	for _, in := range bad {
		if got, err := config.ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", in, got)
		} else if !strings.Contains(err.Error(), "want a size") || len(err.Error()) > 300 {
			t.Errorf("ParseSize(%q): unhelpful error %q", in, err)
		}
	}
}

func TestParseRate(t *testing.T) {
	good := map[string]config.Rate{
		"0": 0, "200Mbit": 25e6, "200Mbit/s": 25e6, "10MiB": 10 << 20, "10MiB/s": 10 << 20, "1Gbit": 125e6, "8bit": 1,
		"2.5Gbit": 312_500_000, "16kbit": 2000, "1Tbit": 125e9, "99": 99, "1.5 MB/s": 1_500_000,
	}
	for in, want := range good {
		if got, err := config.ParseRate(in); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "1bit", "1mbit", "-1Mbit", "/s", "1Mbit/s/s", "1Mbps", "80000000000Tbit"} {
		if got, err := config.ParseRate(in); err == nil {
			t.Errorf("ParseRate(%q) = %d, want an error", in, got)
		}
	}
}

func TestUnitsPrintExactly(t *testing.T) {
	sizes := map[config.Size]string{0: "0", 1: "1", 1000: "1kB", 1024: "1KiB", 512 << 20: "512MiB", 1500: "1500", 3e9: "3GB"}
	for in, want := range sizes {
		if got := in.String(); got != want {
			t.Errorf("Size(%d) prints %q, want %q", int64(in), got, want)
		}
	}
	rates := map[config.Rate]string{0: "0", 25e6: "25MB/s", 10 << 20: "10MiB/s", 7: "7/s"}
	for in, want := range rates {
		if got := in.String(); got != want {
			t.Errorf("Rate(%d) prints %q, want %q", int64(in), got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512MiB", "1.5 GB", "0", "9223372036854775807", "1e9", "-1B", "..", "٣"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := config.ParseSize(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("ParseSize(%q) = %d", s, n)
		}
		if again, err := config.ParseSize(n.String()); err != nil || again != n {
			t.Fatalf("%q printed as %q reads as %d, %v", s, n, again, err)
		}
	})
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"200Mbit", "10MiB/s", "8bit", "1bit", "0/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := config.ParseRate(s)
		if err != nil {
			return
		}
		if again, err := config.ParseRate(n.String()); err != nil || again != n {
			t.Fatalf("%q printed as %q reads as %d, %v", s, n, again, err)
		}
	})
}
