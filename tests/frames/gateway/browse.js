// Opens the study list, a study and the status page in Chromium; prints what it saw as one JSON line.
// node browse.js MODULES BROWSER URL STUDY FRAMES FOLDER
const [modules, browser, url, study, frames, folder] = process.argv.slice(2);
const { chromium } = require(modules + '/playwright-core');

(async () => {
  const running = await chromium.launch({
    executablePath: browser,
    args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'],
  });
  const page = await running.newPage({ viewport: { width: 1280, height: 800 } });
  const seen = { frames: new Set(), faults: [], outside: [] };
  page.on('pageerror', error => seen.faults.push(error.message));
  page.on('request', request => { if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) seen.outside.push(request.url()); });
  page.on('response', response => {
    if (response.status() >= 400) seen.faults.push(response.status() + ' ' + response.url());
    if (response.url().includes('/frames/')) seen.frames.add(response.url());
  });
  await page.goto(url + '/status');
  await page.waitForFunction(uid => document.body.innerText.includes('serving') && document.querySelectorAll('#studies tr').length > 0, study);
  const status = await page.innerText('body');
  await page.screenshot({ path: folder + '/status.png' });
  await page.goto(url + '/');
  await page.getByText('Study List').first().waitFor({ timeout: 120000 });
  await page.getByText('Test, Viewer').first().waitFor({ timeout: 120000 });
  await page.screenshot({ path: folder + '/list.png' });
  await page.goto(url + '/viewer?StudyInstanceUIDs=' + study);
  for (let second = 0; second < 120 && seen.frames.size < Number(frames); second++) await page.waitForTimeout(1000);
  await page.waitForSelector('canvas', { timeout: 60000 });
  const text = await page.innerText('body');
  await page.screenshot({ path: folder + '/viewer.png' });
  console.log(JSON.stringify({ frames: seen.frames.size, faults: seen.faults, outside: seen.outside, status, text }));
  await running.close();
})().catch(error => { console.error(error); process.exit(1); });
