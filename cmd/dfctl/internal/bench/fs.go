package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/config"
)

const (
	maxFiles    = 20_000
	randomReads = 4096
	randomSize  = 4 << 10
	bufferSize  = 1 << 20
)

// FS is what dfctl bench fs prints.
type FS struct {
	Directories []string `json:"directories"`
	// Files were read, of Bytes in all; Entries are those of the first directory.
	Files   int    `json:"files"`
	Bytes   int64  `json:"bytes"`
	Entries int    `json:"entries"`
	Repeat  int    `json:"repeat"`
	Tests   []Test `json:"tests"`
}

// Test is one measurement.
type Test struct {
	// Name is find, stat, sequential or random.
	Name string `json:"name"`
	Cold bool   `json:"cold"`
	Unit string `json:"unit"`
	// Rates are medians, one for each directory; more is better.
	Rates []float64 `json:"rates"`
	// Ratio is the second rate by the first; 0 for one directory.
	Ratio float64 `json:"ratio,omitempty"`
}

type fsOptions struct {
	cold   bool
	repeat int
	limit  int64
}

func (g *group) fsCommand() *cobra.Command {
	o, limit := fsOptions{}, ""
	cmd := &cobra.Command{
		Use:   "fs DIR [DIR2]",
		Short: "Measure reads, stat and find in a directory, or compare two with the same files",
		Long: `Measure a directory: finding all entries, stat of the files, reading the files one
after another, and 4 KiB at random places of them. With a second directory that
has the same files, such as a lazy mount and the same image unpacked, both are
measured in turn, and the ratio is the second's rate by the first's.

Each figure is the median of --repeat rounds, after one that does not count. With
--cold the page cache, the whole machine's, is dropped before each: that needs
root, and slows down everything else for a while. Content of a lazy image that is
not on this node yet is fetched in the first round.

` + exit.Summary,
		Example: `  dfctl bench fs /mnt/app
  sudo dfctl bench fs --cold /mnt/unpacked /mnt/lazy`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := config.ParseSize(limit)
			if err != nil {
				return cli.Usagef("--bytes: %w", err)
			}
			o.limit = int64(size)
			switch {
			case o.repeat < 1:
				return cli.Usagef("--repeat %d: at least 1", o.repeat)
			case o.limit < 1<<20:
				return cli.Usagef("--bytes: at least 1MiB")
			case o.cold && os.Geteuid() != 0:
				return exit.With(exit.Refused, errors.New("--cold: only root can drop the page cache: run it with sudo, or leave --cold out"))
			}
			r, err := measureFS(cmd.Context(), o, args)
			if err != nil {
				return err
			}
			return g.console.Print(g.format, r, r.write)
		},
	}
	cmd.Flags().BoolVar(&o.cold, "cold", false, "measure also with a page cache that was dropped; needs root")
	cmd.Flags().IntVar(&o.repeat, "repeat", 5, "take the median of `N` rounds")
	cmd.Flags().StringVar(&limit, "bytes", "512MiB", "read files of at most `SIZE` together")
	return cmd
}

// file is a regular file by its path below the directories.
type file struct {
	path string
	size int64
}

// fsTest is one kind of work; it returns how many units it did.
type fsTest struct {
	name, unit string
	run        func(ctx context.Context, dir string, files []file) (float64, error)
}

var fsTests = []fsTest{
	{"find", "entries/s", func(ctx context.Context, dir string, _ []file) (float64, error) {
		_, n, err := list(ctx, dir, 0)
		return float64(n), err
	}},
	{"stat", "files/s", statAll},
	{"sequential", "MiB/s", readAll},
	{"random", "reads/s", readRandom},
}

func measureFS(ctx context.Context, o fsOptions, dirs []string) (*FS, error) {
	files, entries, err := list(ctx, dirs[0], o.limit)
	if err != nil {
		return nil, err
	}
	r := &FS{Directories: dirs, Files: len(files), Entries: entries, Repeat: o.repeat}
	for _, f := range files {
		r.Bytes += f.size
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: there are no files to read", dirs[0])
	}
	if len(dirs) > 1 {
		if err := sameFiles(dirs[1], files); err != nil {
			return nil, err
		}
	}
	for _, cold := range []bool{false, true} {
		if cold && !o.cold {
			continue
		}
		for _, t := range fsTests {
			test := Test{Name: t.name, Cold: cold, Unit: t.unit}
			if err := t.measure(ctx, &test, o.repeat, dirs, files); err != nil {
				return nil, err
			}
			r.Tests = append(r.Tests, test)
		}
	}
	return r, nil
}

// measure fills in the rates of a test.
func (t *fsTest) measure(ctx context.Context, test *Test, repeat int, dirs []string, files []file) error {
	rates := make([][]float64, len(dirs))
	for round := range repeat + 1 {
		for i, dir := range dirs {
			if test.Cold {
				if err := dropCaches(); err != nil {
					return err
				}
			}
			begin := time.Now()
			n, err := t.run(ctx, dir, files)
			if err != nil {
				return fmt.Errorf("%s in %s: %w", t.name, dir, err)
			}
			if round > 0 { // the first brings what is not there yet
				rates[i] = append(rates[i], n/max(time.Since(begin).Seconds(), 1e-9))
			}
		}
	}
	for _, all := range rates {
		test.Rates = append(test.Rates, median(all))
	}
	if len(test.Rates) > 1 {
		test.Ratio = test.Rates[1] / test.Rates[0]
	}
	return nil
}

// list returns the regular files of a directory, up to limit bytes, in the order
// of their names, and the number of all entries.
func list(ctx context.Context, dir string, limit int64) (files []file, entries int, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entries++; entries%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if limit <= 0 || !e.Type().IsRegular() || len(files) == maxFiles {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || info.Size() == 0 || info.Size() > limit {
			return err
		}
		limit -= info.Size()
		files = append(files, file{rel, info.Size()})
		return nil
	})
	return files, entries, err
}

// sameFiles checks that a directory has files.
func sameFiles(dir string, files []file) error {
	for _, f := range files {
		info, err := os.Lstat(filepath.Join(dir, f.path))
		if err != nil {
			return fmt.Errorf("the directories do not have the same files: %w", err)
		}
		if info.Size() != f.size {
			return fmt.Errorf("the directories do not have the same files: %s has %d bytes in the first, %d in the second", f.path, f.size, info.Size())
		}
	}
	return nil
}

func statAll(ctx context.Context, dir string, files []file) (float64, error) {
	for i, f := range files {
		if i%1024 == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if _, err := os.Lstat(filepath.Join(dir, f.path)); err != nil {
			return 0, err
		}
	}
	return float64(len(files)), nil
}

func readAll(ctx context.Context, dir string, files []file) (float64, error) {
	buf := make([]byte, bufferSize)
	total := int64(0)
	for _, f := range files {
		n, err := readFile(ctx, filepath.Join(dir, f.path), buf)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return float64(total) / (1 << 20), nil
}

func readFile(ctx context.Context, name string, buf []byte) (total int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read from
	for ctx.Err() == nil {
		n, err := f.Read(buf)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, ctx.Err()
}

// readRandom reads at places that are the same each time.
func readRandom(ctx context.Context, dir string, files []file) (float64, error) {
	total := int64(0)
	ends := make([]int64, len(files))
	for i, f := range files {
		total += f.size
		ends[i] = total
	}
	random := rand.New(rand.NewPCG(1, 2)) // #nosec G404 -- not for secrets
	open := map[int]*os.File{}
	defer func() {
		for _, f := range open {
			_ = f.Close() // only read from
		}
	}()
	buf := make([]byte, randomSize)
	for range randomReads {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		at := random.Int64N(total)
		i, _ := slices.BinarySearch(ends, at+1)
		f := open[i]
		if f == nil {
			var err error
			if f, err = os.Open(filepath.Join(dir, files[i].path)); err != nil {
				return 0, err
			}
			if len(open) == 256 { // within everybody's limit
				for k, old := range open {
					_ = old.Close() // only read from
					delete(open, k)
					break
				}
			}
			open[i] = f
		}
		off := (at - (ends[i] - files[i].size)) &^ (randomSize - 1)
		if _, err := f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
	}
	return randomReads, nil
}

// dropCaches empties the machine's page cache.
func dropCaches() error {
	unix.Sync() // what is dirty is not dropped
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("drop the page cache: %w", err)
	}
	return nil
}

func (r *FS) write(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "%s of %s, %d entries; medians of %d\n", output.Count(r.Files, "file"), output.Bytes(r.Bytes), r.Entries, r.Repeat); err != nil {
		return err
	}
	header := append([]string{"TEST", "CACHE", "UNIT"}, r.Directories...)
	if len(r.Directories) > 1 {
		header = append(header, "RATIO")
	}
	table := output.NewTable(header...)
	for _, t := range r.Tests {
		cache := "warm"
		if t.Cold {
			cache = "cold"
		}
		row := []string{t.Name, cache, t.Unit}
		for _, rate := range t.Rates {
			row = append(row, fmt.Sprintf("%.0f", rate))
		}
		if len(t.Rates) > 1 {
			row = append(row, fmt.Sprintf("%.2f", t.Ratio))
		}
		table.Add(row...)
	}
	return table.Write(w)
}
