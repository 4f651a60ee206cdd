package images

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

// maxLibraries bounds the libraries that are followed from a program.
const maxLibraries = 256

// usualPath is where commands are looked for if an image says nothing.
const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// shownMissing is how many missing paths are named in the text.
const shownMissing = 3

// ColdStart is what a node without anything of the image fetches to start it.
type ColdStart struct {
	// Basis is "trace", or "command" for the image's command, its interpreter
	// and the libraries that they name.
	Basis string `json:"basis"`
	Files int    `json:"files"`
	// Missing are paths and names of libraries that the trace or the program
	// names and the image does not have, or not where loaders look first.
	Missing []string `json:"missing,omitempty"`
	// Groups and GroupBytes must be fetched besides the indexes.
	Groups     int   `json:"groups"`
	GroupBytes int64 `json:"group_bytes"`
	IndexBytes int64 `json:"index_bytes"`
}

func (c *ColdStart) text() string {
	if c == nil {
		return "unknown: the image names no command (see --trace)"
	}
	what := "its command and libraries"
	if c.Basis == "trace" {
		what = "the trace"
	}
	text := fmt.Sprintf("%s: %s of indexes and %s of %s for %s (%s)",
		output.Bytes(c.IndexBytes+c.GroupBytes), output.Bytes(c.IndexBytes), output.Bytes(c.GroupBytes), output.Count(c.Groups, "group"), what, output.Count(c.Files, "file"))
	if n := len(c.Missing); n > 0 {
		text += fmt.Sprintf("; not in the image: %s", output.Clean(strings.Join(c.Missing[:min(n, shownMissing)], ", ")))
		if n > shownMissing {
			text += fmt.Sprintf(" and %d more", n-shownMissing)
		}
	}
	return text
}

// starter collects what a start reads.
type starter struct {
	tree   *chunkfmt.Tree
	reader *content.Reader
	start  *ColdStart
	inodes map[uint32]bool
	groups map[chunkfmt.GroupRef]bool
	// env and dir are the image's environment and working directory.
	env []string
	dir string
}

// coldStart returns nil if nothing says what a start reads.
func coldStart(ctx context.Context, s *subject, tree *chunkfmt.Tree, trace string) (*ColdStart, error) {
	c := &starter{
		tree: tree, reader: content.NewReader(tree, imageindex.Stored{Source: s.source}, content.Options{}),
		start: &ColdStart{Basis: "command"}, inodes: map[uint32]bool{}, groups: map[chunkfmt.GroupRef]bool{},
	}
	c.start.IndexBytes = s.IndexBytes()
	switch {
	case trace != "":
		c.start.Basis = "trace"
		accesses, err := readTrace(trace)
		if err != nil {
			return nil, err
		}
		for _, a := range accesses {
			c.access(a)
		}
	case s.config != nil:
		command := append(append([]string{}, s.config.Config.Entrypoint...), s.config.Config.Cmd...)
		if len(command) == 0 {
			return nil, nil
		}
		c.env, c.dir = s.config.Config.Env, s.config.Config.WorkingDir
		if err := c.program(ctx, c.find(command[0])); err != nil {
			return nil, fmt.Errorf("see what %s needs: %w", command[0], err)
		}
	default:
		return nil, nil
	}
	c.start.Files = len(c.inodes)
	c.start.Groups = len(c.groups)
	for ref := range c.groups {
		c.start.GroupBytes += int64(tree.Group(ref).Stored)
	}
	return c.start, nil
}

func readTrace(file string) ([]build.Access, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read from
	accesses, err := build.ParseTrace(f)
	if err != nil {
		return nil, fmt.Errorf("read trace %s: %w", file, err)
	}
	return accesses, nil
}

func (c *starter) access(a build.Access) {
	inode, err := c.tree.Resolve(a.Path)
	if err != nil {
		c.start.Missing = append(c.start.Missing, a.Path)
		return
	}
	n := a.Length
	if n == 0 {
		n = c.tree.Inodes[inode].Size - a.Offset
	}
	c.use(inode, a.Offset, n)
}

func (c *starter) use(inode uint32, off, n int64) {
	c.inodes[inode] = true
	for _, ref := range c.tree.GroupsOf(inode, off, n) {
		c.groups[ref] = true
	}
}

// find looks a command up as a shell would.
func (c *starter) find(command string) string {
	if path.IsAbs(command) {
		return command
	}
	if strings.Contains(command, "/") {
		return path.Join("/", c.dir, command)
	}
	search := usualPath
	for _, e := range c.env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	for dir := range strings.SplitSeq(search, ":") {
		if _, err := c.tree.Resolve(path.Join(dir, command)); err == nil {
			return path.Join(dir, command)
		}
	}
	return command
}

// program uses a program, whole, with what runs it and the libraries that it
// names, and theirs.
func (c *starter) program(ctx context.Context, name string) error {
	todo := []string{name}
	for len(todo) > 0 && len(c.inodes) < maxLibraries {
		next := todo[0]
		todo = todo[1:]
		inode, err := c.tree.Resolve(next)
		if err != nil {
			c.start.Missing = append(c.start.Missing, next)
			continue
		}
		if c.inodes[inode] || c.tree.Kind(inode) != chunkfmt.File {
			continue
		}
		c.use(inode, 0, c.tree.Inodes[inode].Size)
		needs, err := c.needs(ctx, inode)
		if err != nil {
			return err
		}
		todo = append(todo, needs...)
	}
	return nil
}

// needs returns the paths of what a file names to run it.
func (c *starter) needs(ctx context.Context, inode uint32) ([]string, error) {
	r := &fileReader{ctx: ctx, reader: c.reader, inode: inode}
	head := make([]byte, 256)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if line, ok := strings.CutPrefix(string(head[:n]), "#!"); ok {
		line, _, _ = strings.Cut(line, "\n")
		return c.interpreter(strings.Fields(line)), nil
	}
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, r.err // not a program of a known kind, unless reading failed
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return nil, r.err
	}
	var needs []string
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < chunkfmt.MaxPath {
			interpreter := make([]byte, p.Filesz)
			if _, err := p.ReadAt(interpreter, 0); err == nil {
				needs = append(needs, strings.TrimRight(string(interpreter), "\x00"))
			}
		}
	}
	for _, lib := range libraries {
		if p, ok := c.library(lib); ok {
			needs = append(needs, p)
		} else {
			c.start.Missing = append(c.start.Missing, lib)
		}
	}
	return needs, r.err
}

// interpreter returns the programs that the first line of a script names: one,
// and with /usr/bin/env that which env starts.
func (c *starter) interpreter(words []string) []string {
	if len(words) == 0 {
		return nil
	}
	needs := words[:1:1]
	if path.Base(words[0]) != "env" {
		return needs
	}
	for _, w := range words[1:] {
		if !strings.HasPrefix(w, "-") && !strings.Contains(w, "=") {
			return append(needs, c.find(w))
		}
	}
	return needs
}

// library finds a library where the usual loaders look, without what programs
// and caches of loaders say of other places.
func (c *starter) library(name string) (string, bool) {
	for _, dir := range []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		if _, err := c.tree.Resolve(path.Join(dir, name)); err == nil {
			return path.Join(dir, name), true
		}
		inode, err := c.tree.Resolve(dir)
		if err != nil || c.tree.Kind(inode) != chunkfmt.Dir {
			continue
		}
		for _, e := range c.tree.Children(inode) {
			if !strings.Contains(e.Name, "-linux-") {
				continue
			}
			if p := path.Join(dir, e.Name, name); c.has(p) {
				return p, true
			}
		}
	}
	return "", false
}

func (c *starter) has(p string) bool {
	_, err := c.tree.Resolve(p)
	return err == nil
}

// fileReader reads a file of an image for debug/elf, and keeps the first error
// that is about reading.
type fileReader struct {
	ctx    context.Context //nolint:containedctx // io.ReaderAt has none, and the reader does not outlive the call
	reader *content.Reader
	inode  uint32
	err    error
}

func (r *fileReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.reader.ReadAt(r.ctx, r.inode, p, off)
	if err != nil && !errors.Is(err, io.EOF) && r.err == nil {
		r.err = err
	}
	return n, err
}
