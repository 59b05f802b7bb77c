// Checks a log with Go's own transparency log and signed notes (golang.org/x/mod/sumdb), which share no code with Dwarpal.
//
//	main DIRECTORY VKEY [EARLIER-CHECKPOINT]
//
// The checkpoint has to be signed by VKEY, every entry to be in the tree that it is about, and the tree of the earlier
// checkpoint to be the beginning of that one. Only paths and bundles are C2SP's instead of Go's.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(n int64) string {
	text := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		text = fmt.Sprintf("x%03d/%s", n%1000, text)
	}
	return text
}

// tiles reads hash tiles by C2SP's paths. tlog asks for them, and believes none that does not hash to the root.
type tiles struct {
	directory string
	cache     map[string][]byte
}

func (t tiles) Height() int { return 8 }

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		path := fmt.Sprintf("%s/tile/%d/%s", t.directory, tile.L, number(tile.N))
		if tile.W < 256 {
			path += fmt.Sprintf(".p/%d", tile.W)
		}
		if _, there := t.cache[path]; !there {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			t.cache[path] = data
		}
		all = append(all, t.cache[path])
	}
	return all, nil
}

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func checkpoint(path, vkey string) tlog.Tree {
	text, err := os.ReadFile(path)
	check(err)
	verifier, err := note.NewVerifier(vkey)
	check(err)
	opened, err := note.Open(text, note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] != verifier.Name() {
		check(fmt.Errorf("%s: not a checkpoint of %s", path, verifier.Name()))
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	root, err := tlog.ParseHash(lines[2])
	check(err)
	return tlog.Tree{N: size, Hash: root}
}

func bundle(directory string, n, width int64) [][]byte {
	path := filepath.Join(directory, "tile/entries", number(n))
	if width < 256 {
		path += fmt.Sprintf(".p/%d", width)
	} else {
		path += ".gz"
	}
	data, err := os.ReadFile(path)
	check(err)
	if width == 256 {
		reader, err := gzip.NewReader(bytes.NewReader(data))
		check(err)
		data, err = io.ReadAll(reader)
		check(err)
	}
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			check(fmt.Errorf("%s: cut off", path))
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		entries = append(entries, data[2:end])
		data = data[end:]
	}
	if int64(len(entries)) != width {
		check(fmt.Errorf("%s: %d entries", path, len(entries)))
	}
	return entries
}

func main() {
	directory, vkey := os.Args[1], os.Args[2]
	tree := checkpoint(filepath.Join(directory, "checkpoint"), vkey)
	reader := tlog.TileHashReader(tree, tiles{directory, map[string][]byte{}})
	for first := int64(0); first < tree.N; first += 256 {
		width := tree.N - first
		if width > 256 {
			width = 256
		}
		var indexes []int64
		for i := first; i < first+width; i++ {
			indexes = append(indexes, tlog.StoredHashIndex(0, i))
		}
		// These are proven to be in the tree.
		hashes, err := reader.ReadHashes(indexes)
		check(err)
		for i, entry := range bundle(directory, first/256, width) {
			at := first + int64(i)
			if tlog.RecordHash(entry) != hashes[i] {
				check(fmt.Errorf("entry %d is not in the log", at))
			}
			if at%997 == 0 || at == tree.N-1 {
				proof, err := tlog.ProveRecord(tree.N, at, reader)
				check(err)
				check(tlog.CheckRecord(proof, tree.N, tree.Hash, at, tlog.RecordHash(entry)))
			}
		}
	}
	if len(os.Args) > 3 {
		old := checkpoint(os.Args[3], vkey)
		proof, err := tlog.ProveTree(tree.N, old.N, reader)
		check(err)
		check(tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash))
	}
	fmt.Println(tree.N, "entries")
}
